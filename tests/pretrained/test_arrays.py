"""Sharded arrays to and from the host, with only the requested slices on the host."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.errors import CheckpointError
from qwen_jax.pretrained import arrays
from qwen_jax.pretrained.arrays import cast, empty, fetch, load_sharded

ARRAY = np.random.default_rng(0).normal(size=(3, 8, 16)).astype(np.float32)


def sharding(*axes) -> NamedSharding:
    return NamedSharding(
        Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b")), PartitionSpec(*axes)
    )


SHARDINGS = [
    sharding(None, "b", "a"),
    sharding(None, None, ("a", "b")),
    sharding(None, "a"),
    sharding(),
    None,
]


@pytest.mark.parametrize("where", SHARDINGS)
def test_load_sharded_reads_only_each_shard_once(where):
    requested = []

    def read(index):
        requested.append(tuple((part.start, part.stop) for part in index))
        return ARRAY[index]

    placed = load_sharded(ARRAY.shape, where, read)
    np.testing.assert_array_equal(placed, ARRAY)
    assert len(set(requested)) == len(requested)
    if where is not None:
        assert placed.sharding == where
        size = np.prod(where.shard_shape(ARRAY.shape))
        assert {np.prod([stop - start for start, stop in index]) for index in requested} == {size}
        assert len(requested) * size == ARRAY.size


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("where", SHARDINGS)
@pytest.mark.parametrize(
    "index", [np.s_[1:2, 0:8, 0:16], np.s_[0:3, 3:5, 6:11], np.s_[2:3, 7:8, 0:1]]
)
def test_fetch_returns_any_slice_of_any_sharding(monkeypatch, where, index, on_host):
    monkeypatch.setattr(arrays, "_in_host_memory", lambda shard: on_host)
    array = jax.device_put(ARRAY, where)
    np.testing.assert_array_equal(fetch(array, index), ARRAY[index])
    assert fetch(ARRAY, index).base is ARRAY, "a numpy array is not copied"


def test_empty_gives_a_block_that_a_cpu_uses_without_a_copy():
    block = empty((64, 33), "bfloat16")
    block[...] = 1
    placed = load_sharded(block.shape, None, lambda index: block)
    assert placed.unsafe_buffer_pointer() == block.ctypes.data


def test_empty_block_is_not_changed_by_donating_its_shard():
    block = empty((64, 64), "float32")
    block[...] = 1
    placed = load_sharded(block.shape, None, lambda index: block)
    jax.block_until_ready(jax.jit(lambda x: x + np.float32(1), donate_argnums=0)(placed))
    assert (block == 1).all()


def test_cast_rejects_overflow_and_keeps_infinities():
    assert cast(np.array([np.inf, 1, np.nan], np.float32), "float16", "w").dtype == np.float16
    with pytest.raises(CheckpointError, match="w has values beyond the range of float16"):
        cast(np.array([np.inf, 1e6], np.float32), "float16", "w")
