"""How the cache is cut, and that every way of writing into it writes the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.inference.decoder import kv_cache
from qwen_jax.types import CacheBlock

CONFIG = dataclasses.replace(sizes.TINY, num_layers=3)
ROWS, SLOTS = 4, 200  # 256 slots in blocks of 64, 32, 32, 64, 64


@pytest.mark.parametrize("slots", [8, 64, 65, 96, 128, 448, 2048, 32768])
def test_blocks_cover_the_slots_and_waste_a_third_at_most(slots):
    sizes = kv_cache.block_sizes(slots)
    ends = np.cumsum(sizes)
    assert ends[-1] == slots and min(sizes) > 0
    for length in range(65, slots + 1, 7):  # what is read for a row of this length
        assert ends[np.searchsorted(ends, length)] <= max(1.5 * length, 64)
    assert len(sizes) <= 2 + 2 * max(np.log2(slots / 64), 0)


def slots_of(cache, leaf) -> np.ndarray:
    """One field of the whole cache, [L, B, K, S, .]."""
    stacks = [
        np.concatenate([np.asarray(getattr(block, leaf)) for block in stack], axis=3)
        for stack in cache.blocks
    ]
    return np.concatenate(stacks)


def by_hand(cache, new, rows, start, count, leaf) -> np.ndarray:
    """The definition: token t of row b goes into slot start + t of its row, if it is real."""
    whole = slots_of(cache, leaf).copy()
    k, v = (jnp.concatenate(part) for part in zip(*new, strict=True))
    part = np.asarray(jnp.swapaxes({"keys": k, "values": v}[leaf], 2, 3))
    for b, row in enumerate(rows):
        for t in range(count[b]):
            if row < ROWS:
                whole[:, row, :, start[b] + t] = part[:, b, :, t]
    return whole


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize(
    "T, rows, start, count",
    [
        (1, None, (0, 63, 64, 255), (1, 1, 1, 1)),  # the ends of blocks
        (1, None, (5, 127, 128, 70), (1, 0, 1, 1)),  # one that is not in use
        (1, (2, 9), (95, 3), (1, 1)),  # one that is nobody's
        (90, (3, 0), (50, 0), (90, 64)),  # over four blocks; one block to its end
        (40, None, (0, 60, 200, 17), (40, 0, 1, 39)),
    ],
)
def test_new_tokens_get_into_their_slots_and_nothing_else_changes(
    T, rows, start, count, layer_by_layer
):
    cache = kv_cache.init_cache(CONFIG, ROWS, SLOTS, layer_by_layer=layer_by_layer)
    cache = jax.tree.map(lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), cache)
    layers, shape = cache.blocks[0][0].keys.shape[0], (len(start), T, CONFIG.kv_heads, 8)
    draws = jax.random.normal(jax.random.key(0), (len(cache.blocks), 2, layers, *shape))
    new = [(k, v) for k, v in draws]
    written = jax.jit(kv_cache.write)(
        cache,
        new,
        rows=None if rows is None else jnp.asarray(rows, jnp.int32),
        start_B=jnp.asarray(start, jnp.int32),
        num_tokens_B=jnp.asarray(count, jnp.int32),
    )
    for leaf in ("keys", "values"):
        np.testing.assert_array_equal(
            slots_of(written, leaf),
            by_hand(cache, new, range(ROWS) if rows is None else rows, start, count, leaf),
        )


def test_int8_brings_its_scales_along():
    cache = kv_cache.init_cache(CONFIG, ROWS, SLOTS, dtype="int8")
    x = jax.random.normal(jax.random.key(1), (3, ROWS, 5, CONFIG.kv_heads, 8))
    cache = kv_cache.write(
        cache,
        [(x, x)],
        rows=None,
        start_B=jnp.full(ROWS, 62, jnp.int32),
        num_tokens_B=jnp.full(ROWS, 5, jnp.int32),
    )
    block = CacheBlock(
        *(
            jnp.asarray(slots_of(cache, leaf))
            for leaf in ("keys", "values", "key_scales", "value_scales")
        )
    )
    for entries, scales in ((block.keys, block.key_scales), (block.values, block.value_scales)):
        found = kv_cache.dequantize(entries, scales, jnp.float32)[:, :, :, 62:67]
        step = float(x.max() - x.min()) / 255
        np.testing.assert_allclose(found, jnp.swapaxes(x, 2, 3), atol=step / 2 + 1e-6)
