"""The KV cache: its size, its blocks, and writes of new tokens.

Positions are split into blocks at fixed boundaries, small blocks first. Short sequences are then
cheap, and long ones need few operations. Attention reads full blocks (cached_forward.py).

B sequences in a call, T new tokens, S positions, C positions in a block, K key-value heads,
H head size, X: H or 2, l layers in an array.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.parallel.sharding import constrain
from qwen_jax.types import Array, CacheBlock, KVCache

BLOCK = 64  # positions of the first block; the cache length is a multiple of it
_AXES = (None, "batch", "act_kv_heads", None, None)


def block_sizes(max_length: int) -> tuple[int, ...]:
    """Returns the block sizes of a cache of `max_length` positions.

    Blocks end at 64, 96, 128, 192, 256, 384, 512 and so on, two per doubling. At most a third of
    the positions read are past the end of the longest sequence.
    """
    size, ends = BLOCK, []
    while size < max_length:
        ends += [size, size * 3 // 2]
        size *= 2
    ends = [0, *(end for end in ends if end < max_length), max_length]
    return tuple(b - a for a, b in itertools.pairwise(ends))


def init_cache(
    config: ModelConfig,
    batch_size: int,
    max_length: int,
    *,
    dtype=None,
    layer_by_layer: bool = False,
) -> KVCache:
    """Returns an empty cache of at least `max_length` positions per sequence, 2 L B S K H entries.

    Args:
      dtype: dtype of the entries; "int8" adds two float32 numbers per token, head, and key or
        value. None: config.compute_dtype.
      layer_by_layer: whether to use one array per layer, for the prepacked weights of
        decoder/weights.py; otherwise one array holds all layers, which are scanned.
    """
    if max_length > BLOCK:
        max_length = -(-max_length // BLOCK) * BLOCK
    dtype = jnp.dtype(dtype or config.compute_dtype)
    stacks, layers = (config.num_layers, 1) if layer_by_layer else (1, config.num_layers)

    def block(size: int) -> CacheBlock:
        shape = (layers, batch_size, config.kv_heads, size)

        def zeros(last, dtype):
            return constrain(jnp.zeros((*shape, last), dtype), *_AXES)

        def scales():
            return zeros(2, jnp.float32) if dtype == jnp.int8 else None

        return CacheBlock(
            keys=zeros(config.head_dim, dtype),
            values=zeros(config.head_dim, dtype),
            key_scales=scales(),
            value_scales=scales(),
        )

    return KVCache(
        blocks=tuple(tuple(map(block, block_sizes(max_length))) for _ in range(stacks)),
        lengths=jnp.zeros((batch_size,), jnp.int32),
        ntk_lengths=jnp.zeros((batch_size,), jnp.int32),
    )


def cache_bytes(config: ModelConfig, batch_size: int, max_length: int, *, dtype=None) -> int:
    """Returns the size in bytes of a cache from `init_cache`, summed over all devices."""
    make = functools.partial(init_cache, config, batch_size, max_length, dtype=dtype)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make)))


def starts(blocks: tuple[CacheBlock, ...]) -> tuple[int, ...]:
    """Returns the first position of each block, and the end of the last block."""
    return tuple(itertools.accumulate((block.keys.shape[3] for block in blocks), initial=0))


def quantize(x: Array) -> tuple[Array, Array]:
    """Returns int8 entries shaped like x, and their scale and shift, float32 [..., 2].

    x = entry * scale + shift. The minimum and maximum over the last axis map to the ends of the 256
    levels, so the error is at most half of (max - min) / 255.
    """
    x = x.astype(jnp.float32)
    low, high = jnp.min(x, axis=-1, keepdims=True), jnp.max(x, axis=-1, keepdims=True)
    scale = (high - low) / 255.0
    entry = jnp.round((x - low) / jnp.where(scale > 0, scale, 1.0)) - 128.0
    return (
        jnp.clip(entry, -128.0, 127.0).astype(jnp.int8),
        jnp.concatenate([scale, low + 128.0 * scale], axis=-1),
    )


def dequantize(entries: Array, scales: Array | None, dtype) -> Array:
    """Returns the values of quantized or plain entries, in `dtype`."""
    if scales is None:
        return entries.astype(dtype)
    return (entries.astype(jnp.float32) * scales[..., :1] + scales[..., 1:]).astype(dtype)


def take_slots(x: Array, slots: Array | None, axis: int = 0) -> Array:
    """Returns the entries of some decode slots, in the order of `slots`; None: all of them."""
    return x if slots is None else jnp.take(x, slots, axis=axis, mode="clip")


def put_slots(x: Array, new: Array, slots: Array | None) -> Array:
    """Returns x with `new` in some decode slots (axis 0); drops indices past the last slot."""
    return new if slots is None else x.at[slots].set(new, mode="drop", unique_indices=True)


def write(
    cache: KVCache,
    new: list[tuple[Array, Array]],
    *,
    slots: Array | None,
    start_B: Array,
    num_tokens_B: Array,
) -> KVCache:
    """Writes the new tokens of all layers at their positions; does not change `lengths`.

    Args:
      new: keys and values [l, B, T, K, H] for each of the cache's stacks of layers.
      slots: int32 [B], the decode slots of the sequences in `new`; None: all, in order.
      start_B: int32; the position of each sequence's first new token.
      num_tokens_B: int32; the number of real tokens of each sequence. Padding is not written.
    """
    edges = starts(cache.blocks[0])
    entries = tuple(
        _entries(*pair, like=stack[0]) for pair, stack in zip(new, cache.blocks, strict=True)
    )
    # The blocks of all stacks, per range of positions.
    by_range = list(zip(*cache.blocks, strict=True))
    if new[0][0].shape[2] > 1:
        put = functools.partial(_write_many, edges, by_range, entries)
    elif len(cache.blocks) > 1:
        put = functools.partial(_write_in_loop, edges, by_range, entries)
    else:
        put = functools.partial(_write_by_scatter, edges, by_range, entries)
    return cache.replace(blocks=tuple(zip(*put(slots, start_B, num_tokens_B), strict=True)))


def _entries(k_lBTKH: Array, v_lBTKH: Array, *, like: CacheBlock) -> CacheBlock:
    """Returns new keys and values as cache entries, [l, B, K, T, .]."""
    k, v = jnp.swapaxes(k_lBTKH, 2, 3), jnp.swapaxes(v_lBTKH, 2, 3)
    if like.key_scales is None:
        return CacheBlock(k.astype(like.keys.dtype), v.astype(like.values.dtype), None, None)
    (k, k_scales), (v, v_scales) = quantize(k), quantize(v)
    return CacheBlock(k, v, k_scales, v_scales)


def _write_many(edges, by_range, entries, slots, start_B, num_tokens_B):
    """Writes several tokens per sequence: selects old or new entries in each touched block."""

    def put(begin, end, blocks):
        position = jnp.arange(begin, end, dtype=jnp.int32)
        source_BC = position[None] - start_B[:, None]
        is_new_BC = (source_BC >= 0) & (source_BC < num_tokens_B[:, None])

        def select(old, new):
            source = jnp.clip(source_BC, 0, new.shape[3] - 1)[None, :, None, :, None]
            merged = jnp.where(
                is_new_BC[None, :, None, :, None],
                jnp.take_along_axis(new, source, axis=3, mode="promise_in_bounds"),
                take_slots(old, slots, axis=1),
            )
            if slots is None:
                return merged
            return old.at[:, slots].set(merged, mode="drop", unique_indices=True)

        touched = jnp.any(is_new_BC).astype(jnp.int32)
        return jax.lax.fori_loop(
            0, touched, lambda _, blocks: jax.tree.map(select, blocks, entries), blocks
        )

    return [
        put(*ends, blocks) for ends, blocks in zip(itertools.pairwise(edges), by_range, strict=True)
    ]


def _write_in_loop(edges, by_range, entries, slots, start_B, num_tokens_B):
    """Writes one token per sequence on a CPU in one loop; XLA:CPU's scatter loops per array."""
    block_B = jnp.searchsorted(np.asarray(edges[1:], np.int32), start_B, side="right")
    in_use_B = num_tokens_B > 0
    if slots is not None:
        in_use_B = in_use_B & (slots < by_range[0][0].keys.shape[1])
    block_B = jnp.where(in_use_B, block_B, len(by_range)).astype(jnp.int32)
    order_B = jnp.argsort(block_B).astype(jnp.int32)
    bounds = jnp.searchsorted(block_B[order_B], np.arange(len(by_range) + 1, dtype=np.int32))
    bounds = bounds.astype(jnp.int32)

    def put(index, blocks):
        def put_token(i, blocks):
            b = order_B[i]
            slot = b if slots is None else slots[b]
            at = (jnp.int32(0), slot, jnp.int32(0), start_B[b] - edges[index], jnp.int32(0))
            return jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_slice(
                    old, jax.lax.dynamic_slice_in_dim(new, b, 1, axis=1), at
                ),
                blocks,
                entries,
            )

        return jax.lax.fori_loop(bounds[index], bounds[index + 1], put_token, blocks)

    return [put(index, blocks) for index, blocks in enumerate(by_range)]


def _write_by_scatter(edges, by_range, entries, slots, start_B, num_tokens_B):
    """Writes one token per sequence on other devices: a scatter per array and block.

    Each scatter drops the tokens of other blocks.
    """
    if slots is None:
        slots = jnp.arange(start_B.shape[0], dtype=jnp.int32)

    def put(begin, end, blocks):
        here_B = (num_tokens_B > 0) & (start_B >= begin) & (start_B < end)
        at_B = jnp.where(here_B, start_B - begin, end - begin)  # out of range: dropped
        return jax.tree.map(
            lambda old, new_lBK1X: old.at[:, slots, :, at_B].set(
                new_lBK1X[:, :, :, 0].transpose(1, 0, 2, 3), mode="drop", unique_indices=True
            ),
            blocks,
            entries,
        )

    return [
        put(*ends, blocks) for ends, blocks in zip(itertools.pairwise(edges), by_range, strict=True)
    ]
