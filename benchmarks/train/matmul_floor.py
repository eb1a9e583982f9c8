"""The time that the matrix products of one training step take by themselves, in XLA or in torch.

A step cannot be faster than its matrix products in the library that it uses. Each is timed alone,
in the three forms that training needs, in a loop long enough to warm up.

    python -m benchmarks.train.matmul_floor float32 jax
"""

import json
import sys
import time

import numpy as np


def products(size: dict) -> list[tuple[int, int, int, int]]:
    """(rows, inputs, outputs, how often) of every linear layer of the model in `size`."""
    tokens = size["batch_size"] * size["context_length"]
    hidden, ffn, layers = size["hidden_size"], size["ffn_size"], size["num_layers"]
    return [
        (tokens, hidden, hidden, 4 * layers),
        (tokens, hidden, ffn, 2 * layers),
        (tokens, ffn, hidden, layers),
        (tokens, hidden, size["vocab_size"], 1),
    ]


def forms(rows: int, inputs: int, outputs: int) -> list[tuple[tuple, tuple, int, int]]:
    """Shapes and contracted axes of y = x w, dx = dy w^T, dw = x^T dy."""
    x, w, y = (rows, inputs), (inputs, outputs), (rows, outputs)
    return [(x, w, 1, 0), (y, w, 1, 1), (x, y, 0, 0)]


def jax_product(dtype: str):
    import jax
    import jax.numpy as jnp

    def make(a, b, axis_a, axis_b):
        product = jax.jit(
            lambda a, b: jax.lax.dot_general(
                a,
                b,
                (((axis_a,), (axis_b,)), ((), ())),
                preferred_element_type=jnp.float32 if axis_a == 0 else None,
            )
        )  # as model/layers.py does
        a, b = jnp.ones(a, dtype), jnp.ones(b, dtype)
        return lambda: product(a, b).block_until_ready()

    return make


def torch_product(dtype: str):
    import torch  # pyright: ignore[reportMissingImports]  # a peer, which need not be here

    def make(a, b, axis_a, axis_b):
        a, b = (torch.ones(shape, dtype=getattr(torch, dtype)) for shape in (a, b))
        a, b = a if axis_a == 1 else a.T, b if axis_b == 0 else b.T
        return lambda: a @ b

    return make


def seconds(size: dict, make) -> float:
    total = 0.0
    for rows, inputs, outputs, count in products(size):
        for form in forms(rows, inputs, outputs):
            product, times = make(*form), []
            for _ in range(12):
                started = time.perf_counter()
                product()
                times.append(time.perf_counter() - started)
            total += count * float(np.median(times[2:]))
    return total


if __name__ == "__main__":
    dtype, library, size = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    print(
        json.dumps(
            {"seconds": seconds(size, {"jax": jax_product, "torch": torch_product}[library](dtype))}
        )
    )
