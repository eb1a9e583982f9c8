"""The blocks of the KV cache, and every way to write into it against the definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.inference.decoder import kv_cache
from qwen_jax.types import CacheBlock

CONFIG = dataclasses.replace(sizes.TINY, num_layers=3)
SLOTS, LENGTH = 4, 200  # 256 positions in blocks of 64, 32, 32, 64, 64


@pytest.mark.parametrize("max_length", [8, 64, 65, 96, 128, 448, 2048, 32768])
def test_block_sizes_cover_the_cache_and_waste_at_most_a_third(max_length):
    sizes = kv_cache.block_sizes(max_length)
    ends = np.cumsum(sizes)
    assert ends[-1] == max_length and min(sizes) > 0
    for length in range(65, max_length + 1, 7):  # positions read for a sequence of this length
        assert ends[np.searchsorted(ends, length)] <= max(1.5 * length, 64)
    assert len(sizes) <= 2 + 2 * max(np.log2(max_length / 64), 0)


def entries_of(cache, leaf) -> np.ndarray:
    """Returns one field of the full cache, [L, B, K, S, .]."""
    stacks = [
        np.concatenate([np.asarray(getattr(block, leaf)) for block in stack], axis=3)
        for stack in cache.blocks
    ]
    return np.concatenate(stacks)


def expected_entries(cache, new, slots, start, count, leaf) -> np.ndarray:
    """The definition: token t of sequence b is written at start + t of its slot, if it is real."""
    expected = entries_of(cache, leaf).copy()
    k, v = (np.concatenate(part) for part in zip(*new, strict=True))
    written = np.swapaxes({"keys": k, "values": v}[leaf], 2, 3)
    for b, slot in enumerate(slots):
        for t in range(count[b]):
            if slot < SLOTS:
                expected[:, slot, :, start[b] + t] = written[:, b, :, t]
    return expected


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize(
    "T, slots, start, count",
    [
        (1, None, (0, 63, 64, 255), (1, 1, 1, 1)),  # the ends of blocks
        (1, None, (5, 127, 128, 70), (1, 0, 1, 1)),  # one sequence is not in use
        (1, (2, 9), (95, 3), (1, 1)),  # one slot is padding
        (90, (3, 0), (50, 0), (90, 64)),  # over four blocks; one block to its end
        (40, None, (0, 60, 200, 17), (40, 0, 1, 39)),
    ],
)
def test_write_puts_new_tokens_at_their_positions_and_changes_nothing_else(
    T, slots, start, count, layer_by_layer
):
    cache = jax.eval_shape(
        lambda: kv_cache.init_cache(CONFIG, SLOTS, LENGTH, layer_by_layer=layer_by_layer)
    )
    cache = jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), cache)
    layers, shape = cache.blocks[0][0].keys.shape[0], (len(start), T, CONFIG.kv_heads, 8)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((len(cache.blocks), 2, layers, *shape), np.float32)
    new = [(k, v) for k, v in values]
    written = jax.jit(kv_cache.write)(
        cache,
        new,
        slots=None if slots is None else np.asarray(slots, np.int32),
        start_B=np.asarray(start, np.int32),
        num_tokens_B=np.asarray(count, np.int32),
    )
    for leaf in ("keys", "values"):
        np.testing.assert_array_equal(
            entries_of(written, leaf),
            expected_entries(
                cache, new, range(SLOTS) if slots is None else slots, start, count, leaf
            ),
        )


@pytest.mark.parametrize("layer_by_layer, T", [(False, 5), (True, 1)])
def test_write_int8_also_writes_the_scales(layer_by_layer, T):
    shape = (3, SLOTS, T, CONFIG.kv_heads, 8)
    x = np.random.default_rng(1).standard_normal(shape, np.float32)

    @jax.jit
    def written(x):
        return kv_cache.write(
            kv_cache.init_cache(CONFIG, SLOTS, LENGTH, dtype="int8", layer_by_layer=layer_by_layer),
            [(part, part) for part in (jnp.split(x, 3) if layer_by_layer else [x])],
            slots=None,
            start_B=jnp.full(SLOTS, 62, jnp.int32),
            num_tokens_B=jnp.full(SLOTS, T, jnp.int32),
        )

    cache, dequantize = written(x), jax.jit(kv_cache.dequantize, static_argnums=2)
    block = CacheBlock(
        *(entries_of(cache, leaf) for leaf in ("keys", "values", "key_scales", "value_scales"))
    )
    for entries, scales in ((block.keys, block.key_scales), (block.values, block.value_scales)):
        found = np.asarray(dequantize(entries, scales, jnp.float32))[:, :, :, 62 : 62 + T]
        step = float(x.max() - x.min()) / 255
        np.testing.assert_allclose(found, np.swapaxes(x, 2, 3), atol=step / 2 + 1e-6)
