"""Small states to save, and functions that compare what is restored."""

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.types import TrainState


def make_state(seed: int, rows: int = 64) -> TrainState:
    rng = np.random.default_rng(seed)
    weights = jnp.asarray(rng.standard_normal((rows, 32)), jnp.float32)
    return TrainState(
        step=jnp.int32(seed),
        params={"w": weights, "b": weights[0].astype("bfloat16")},
        opt_state=(weights * 2, None, {"count": jnp.int32(7)}),
    )


def abstract(state, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def assert_params(chunks, params):
    """Every parameter, and an inner part of the first, equals its assembled chunks."""
    inner = {"w": (slice(5, 40), slice(3, 30))}
    for name, array in params.items():
        for index in (tuple(slice(0, size) for size in array.shape), inner.get(name)):
            if index is not None:
                found = np.full_like(array[index], np.nan)
                for where, chunk in chunks(name, index):
                    found[where] = chunk
                np.testing.assert_array_equal(found, array[index])
