"""Times only the matmuls of one training step, in XLA or PyTorch.

A step cannot be faster than its library's matmuls. Each matmul is timed separately in a loop with
warm-up, in its three training forms: the output and both gradients.

    python -m benchmarks.train.matmul_floor float32 jax '{"batch_size": 8, "context_length": 512,
        "hidden_size": 256, "ffn_size": 1024, "num_layers": 4, "vocab_size": 32768}'

benchmarks.train.train_step runs it with the size of its step.
"""

import argparse
import json
import time

import numpy as np


def matmuls(size: dict) -> list[tuple[int, int, int, int]]:
    """Returns (rows, inputs, outputs, count) for every linear layer of the model in `size`."""
    tokens = size["batch_size"] * size["context_length"]
    hidden, ffn, layers = size["hidden_size"], size["ffn_size"], size["num_layers"]
    return [
        (tokens, hidden, hidden, 4 * layers),
        (tokens, hidden, ffn, 2 * layers),
        (tokens, ffn, hidden, layers),
        (tokens, hidden, size["vocab_size"], 1),
    ]


def forms(rows: int, inputs: int, outputs: int) -> list[tuple[tuple, tuple, int, int]]:
    """Returns the shapes and contracted axes of y = x w, dx = dy w^T and dw = x^T dy."""
    x, w, y = (rows, inputs), (inputs, outputs), (rows, outputs)
    return [(x, w, 1, 0), (y, w, 1, 1), (x, y, 0, 0)]


def jax_matmul(dtype: str):
    import jax
    import jax.numpy as jnp

    def make(a, b, axis_a, axis_b):
        matmul = jax.jit(
            lambda a, b: jax.lax.dot_general(
                a,
                b,
                (((axis_a,), (axis_b,)), ((), ())),
                preferred_element_type=jnp.float32 if axis_a == 0 else None,
            )
        )  # as in model/layers.py
        a, b = jnp.ones(a, dtype), jnp.ones(b, dtype)
        return lambda: matmul(a, b).block_until_ready()

    return make


def torch_matmul(dtype: str):
    import torch  # pyright: ignore[reportMissingImports]  # an optional peer

    def make(a, b, axis_a, axis_b):
        a, b = (torch.ones(shape, dtype=getattr(torch, dtype)) for shape in (a, b))
        a, b = a if axis_a == 1 else a.T, b if axis_b == 0 else b.T
        return lambda: a @ b

    return make


def seconds(size: dict, make) -> float:
    total = 0.0
    for rows, inputs, outputs, count in matmuls(size):
        for form in forms(rows, inputs, outputs):
            matmul, times = make(*form), []
            for _ in range(12):
                started = time.perf_counter()
                matmul()
                times.append(time.perf_counter() - started)
            total += count * float(np.median(times[2:]))
    return total


if __name__ == "__main__":
    frameworks = {"jax": jax_matmul, "torch": torch_matmul}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("framework", choices=list(frameworks))
    parser.add_argument("size", type=json.loads, help="sizes of the model and batch, as JSON")
    options = parser.parse_args()
    make = frameworks[options.framework](options.dtype)
    print(json.dumps({"seconds": seconds(options.size, make)}))
