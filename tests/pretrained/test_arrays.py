"""A sharded array from its pieces and back, no more of it on the host than asked for."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen_jax.errors import CheckpointError
from qwen_jax.pretrained.arrays import cast, empty, fetch, place

WHOLE = np.random.default_rng(0).normal(size=(3, 8, 16)).astype(np.float32)


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
def test_place_reads_each_shard_once_and_nothing_else(where):
    asked = []

    def read(index):
        asked.append(tuple((part.start, part.stop) for part in index))
        return WHOLE[index]

    placed = place(WHOLE.shape, where, read)
    np.testing.assert_array_equal(placed, WHOLE)
    assert len(set(asked)) == len(asked)
    if where is not None:
        assert placed.sharding == where
        size = np.prod(where.shard_shape(WHOLE.shape))
        assert {np.prod([stop - start for start, stop in index]) for index in asked} == {size}
        assert len(asked) * size == WHOLE.size


@pytest.mark.parametrize("where", SHARDINGS)
@pytest.mark.parametrize(
    "index", [np.s_[1:2, 0:8, 0:16], np.s_[0:3, 3:5, 6:11], np.s_[2:3, 7:8, 0:1]]
)
def test_fetch_gives_any_piece_of_any_sharding(where, index):
    array = jax.device_put(WHOLE, where)
    np.testing.assert_array_equal(fetch(array, index), WHOLE[index])
    assert fetch(WHOLE, index).base is WHOLE, "a numpy array is not copied"


def test_a_block_that_empty_made_is_the_shard_itself_on_a_cpu():
    block = empty((64, 33), "bfloat16")
    block[...] = 1
    placed = place(block.shape, None, lambda index: block)
    assert placed.unsafe_buffer_pointer() == block.ctypes.data


def test_a_donated_shard_does_not_change_the_block_that_it_was():
    block = empty((64, 64), "float32")
    block[...] = 1
    placed = place(block.shape, None, lambda index: block)
    jax.block_until_ready(jax.jit(lambda x: x + np.float32(1), donate_argnums=0)(placed))
    assert (block == 1).all()


def test_cast_refuses_what_becomes_infinite_and_lets_infinities_be():
    assert cast(np.array([np.inf, 1, np.nan], np.float32), "float16", "w").dtype == np.float16
    with pytest.raises(CheckpointError, match="w has values beyond the range of float16"):
        cast(np.array([np.inf, 1e6], np.float32), "float16", "w")
