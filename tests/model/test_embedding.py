"""The embedding on a mesh: equal values and gradients, and no replicated gradient."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from qwen_jax.config import MeshConfig
from qwen_jax.model.embedding import embed
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import DEFAULT_RULES, use_layout

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 64, (8, 12), np.int32)
TABLE = RNG.standard_normal((64, 16), np.float32)
COTANGENT = RNG.standard_normal((8, 12, 16), np.float32)


def compiled(dtype):
    """Returns a new function, since JAX would reuse what it traced for another mesh."""

    def values_and_gradient(tokens, table):
        def loss(table):
            x = embed(tokens, table, dtype=dtype)
            return jnp.sum(x.astype(jnp.float32) * COTANGENT), x

        return jax.grad(loss, has_aux=True)(table)

    return jax.jit(values_and_gradient)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [(1, 8, 1, 1), (1, 2, 4, 1), (2, 2, 2, 1), (1, 1, 8, 1), (1, 2, 2, 2), (4, 1, 1, 2)]
)
def test_embed_is_equal_on_every_mesh(shape, dtype):
    wanted_gradient, wanted = compiled(dtype)(TOKENS, TABLE)
    mesh = make_mesh(MeshConfig(*shape))

    def put(x, *axes):
        return jax.device_put(x, NamedSharding(mesh, DEFAULT_RULES.partition_spec(axes)))

    with use_layout(mesh):
        gradient, values = compiled(dtype)(
            put(TOKENS, "batch", "length"), put(TABLE, "vocab", "embed")
        )
    np.testing.assert_array_equal(values, wanted)
    # A token at several positions: its gradient is a sum in a different order.
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (2, 1, 1, 4), (1, 8, 1, 1), (1, 2, 4, 1)])
def test_embed_leaves_no_scatter_to_the_partitioner(shape):
    """A scatter that XLA partitions may lose gradients of micro-batches (model/embedding.py)."""
    with use_layout(make_mesh(MeshConfig(*shape))):
        program = jax.make_jaxpr(compiled("bfloat16"))(TOKENS, TABLE)
    assert "scatter-add" in str(program)
    assert "scatter-add" not in list(primitives_of_the_partitioner(program.jaxpr))


def primitives_of_the_partitioner(jaxpr):
    """Yields the names of the primitives outside of shard_map."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name != "shard_map":
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from primitives_of_the_partitioner(inner)


COMPILE = """
import dataclasses, jax, optax
from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import batch_sharding, use_layout
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.state import abstract_state
from qwen_jax.train.step import make_train_step
from qwen_jax.train.supervised import abstract_batch
for shape in ((1, 4, 2, 1), (1, 2, 2, 2)):
    mesh = make_mesh(MeshConfig(*shape))
    optimizer = optax.sgd(0.1)  # compiles fast; the optimizer gathers nothing
    state = abstract_state(param_specs(sizes.TINY), optimizer, mesh, dtype="float32")
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype,
                                                        sharding=batch_sharding(mesh)),
                         abstract_batch(8, 16))
    with use_layout(mesh):
        # The partitioner warns before code generation, so optimization is off.
        make_train_step(make_objective(sizes.TINY), optimizer, seed=0).lower(state, batch).compile(
            {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
print("compiled")
"""


def test_embed_triggers_no_involuntary_rematerialization():
    """XLA warns of every array that it replicates for lack of a better partitioning."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0", "PYTHONPATH": "."},
        timeout=1800,
    )
    assert "compiled" in done.stdout, done.stderr[-2000:]
    assert "nvoluntary full remat" not in done.stderr
