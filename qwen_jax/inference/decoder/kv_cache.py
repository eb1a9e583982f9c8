"""The KV cache: how large it is, how it is cut, how new tokens get into it.

Slots are cut into blocks at fixed places, small ones first, so that rows that are short cost little
and rows that are long few operations. Attention reads whole blocks (cached_forward.py).

B rows of a call, T new tokens, S slots, C slots in a block, K key-value heads, H head size,
X: H or 2, l layers of an array.
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

BLOCK = 64  # slots of the first block; all slots are a multiple of it
_AXES = (None, "batch", "act_kv_heads", None, None)


def block_sizes(slots: int) -> tuple[int, ...]:
    """How `slots` slots are cut: at 64, 96, 128, 192, 256, 384, 512 and so on, two a doubling.

    At most a third of what is read lies behind the longest row.
    """
    size, ends = BLOCK, []
    while size < slots:
        ends += [size, size * 3 // 2]
        size *= 2
    ends = [0, *(end for end in ends if end < slots), slots]
    return tuple(b - a for a, b in itertools.pairwise(ends))


def init_cache(
    config: ModelConfig, batch_size: int, slots: int, *, dtype=None, layer_by_layer: bool = False
) -> KVCache:
    """An empty cache of at least `slots` tokens per row, 2 L B S K H entries.

    Args:
      dtype: of the entries; "int8" adds two float32 numbers per token, head, and key or value.
        None: config.compute_dtype.
      layer_by_layer: an array for each layer, for the weights of inference/decoder/weights.py;
        otherwise one for all, for layers that are scanned.
    """
    if slots > BLOCK:
        slots = -(-slots // BLOCK) * BLOCK
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
        blocks=tuple(tuple(map(block, block_sizes(slots))) for _ in range(stacks)),
        lengths=jnp.zeros((batch_size,), jnp.int32),
        ntk_lengths=jnp.zeros((batch_size,), jnp.int32),
    )


def cache_bytes(config: ModelConfig, batch_size: int, slots: int, *, dtype=None) -> int:
    """Bytes of such a cache over all devices."""
    make = functools.partial(init_cache, config, batch_size, slots, dtype=dtype)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make)))


def starts(blocks: tuple[CacheBlock, ...]) -> tuple[int, ...]:
    """The first slot of each block, and the number of slots behind the last."""
    return tuple(itertools.accumulate((block.keys.shape[3] for block in blocks), initial=0))


def quantize(x: Array) -> tuple[Array, Array]:
    """int8 entries like x and float32 [..., 2], scale and shift: x = entry * scale + shift.

    The last axis' least and largest are the ends of the 256 steps, so that the error is at most
    half of (max - min) / 255.
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
    """What `entries` stand for, in `dtype`."""
    if scales is None:
        return entries.astype(dtype)
    return (entries.astype(jnp.float32) * scales[..., :1] + scales[..., 1:]).astype(dtype)


def take_rows(x: Array, rows: Array | None, axis: int = 0) -> Array:
    """Some rows of x, in the order of `rows`; all where that is None."""
    return x if rows is None else jnp.take(x, rows, axis=axis, mode="clip")


def put_rows(x: Array, new: Array, rows: Array | None) -> Array:
    """x with `new` in some of its rows (axis 0); what is no row is dropped."""
    return new if rows is None else x.at[rows].set(new, mode="drop", unique_indices=True)


def write(
    cache: KVCache,
    new: list[tuple[Array, Array]],
    *,
    rows: Array | None,
    start_B: Array,
    num_tokens_B: Array,
) -> KVCache:
    """The cache with the new tokens of all layers in their slots; `lengths` stay as they are.

    Args:
      new: keys and values [l, B, T, K, H] for each of the cache's arrays of layers.
      rows: int32 [B], the rows of the cache that those of `new` are; None: all in order.
      start_B: int32; the slot of each row's first new token.
      num_tokens_B: int32; how many of the T are real. Others are not written.
    """
    edges = starts(cache.blocks[0])
    parts = tuple(
        _entries(*pair, like=stack[0]) for pair, stack in zip(new, cache.blocks, strict=True)
    )
    by_place = list(
        zip(*cache.blocks, strict=True)
    )  # for each stretch of slots, the block of every stack
    if new[0][0].shape[2] > 1:
        put = functools.partial(_put_many, edges, by_place, parts)
    elif len(cache.blocks) > 1:
        put = functools.partial(_put_row_by_row, edges, by_place, parts)
    else:
        put = functools.partial(_put_at_once, edges, by_place, parts)
    return cache.replace(blocks=tuple(zip(*put(rows, start_B, num_tokens_B), strict=True)))


def _entries(k_lBTKH: Array, v_lBTKH: Array, *, like: CacheBlock) -> CacheBlock:
    """New keys and values as entries, [l, B, K, T, .]."""
    k, v = jnp.swapaxes(k_lBTKH, 2, 3), jnp.swapaxes(v_lBTKH, 2, 3)
    if like.key_scales is None:
        return CacheBlock(k.astype(like.keys.dtype), v.astype(like.values.dtype), None, None)
    (k, k_scales), (v, v_scales) = quantize(k), quantize(v)
    return CacheBlock(k, v, k_scales, v_scales)


def _put_many(edges, by_place, parts, rows, start_B, num_tokens_B):
    """Of each block that a prompt touches, what is new is chosen from the prompt."""

    def put(begin, end, blocks):
        slot = jnp.arange(begin, end, dtype=jnp.int32)
        source_BC = slot[None] - start_B[:, None]
        is_new_BC = (source_BC >= 0) & (source_BC < num_tokens_B[:, None])

        def choose(whole, part):
            source = jnp.clip(source_BC, 0, part.shape[3] - 1)[None, :, None, :, None]
            new = jnp.where(
                is_new_BC[None, :, None, :, None],
                jnp.take_along_axis(part, source, axis=3, mode="promise_in_bounds"),
                take_rows(whole, rows, axis=1),
            )
            if rows is None:
                return new
            return whole.at[:, rows].set(new, mode="drop", unique_indices=True)

        touched = jnp.any(is_new_BC).astype(jnp.int32)
        return jax.lax.fori_loop(
            0, touched, lambda _, blocks: jax.tree.map(choose, blocks, parts), blocks
        )

    return [
        put(*ends, blocks) for ends, blocks in zip(itertools.pairwise(edges), by_place, strict=True)
    ]


def _put_row_by_row(edges, by_place, parts, rows, start_B, num_tokens_B):
    """One token a row, on a CPU: XLA:CPU's scatter would take a loop of its own for each array."""
    place_B = jnp.searchsorted(np.asarray(edges[1:], np.int32), start_B, side="right")
    in_use_B = num_tokens_B > 0
    if rows is not None:
        in_use_B = in_use_B & (rows < by_place[0][0].keys.shape[1])
    place_B = jnp.where(in_use_B, place_B, len(by_place)).astype(jnp.int32)
    order_B = jnp.argsort(place_B).astype(jnp.int32)
    bounds = jnp.searchsorted(place_B[order_B], np.arange(len(by_place) + 1, dtype=np.int32))
    bounds = bounds.astype(jnp.int32)

    def put(index, blocks):
        def put_row(i, blocks):
            b = order_B[i]
            row = b if rows is None else rows[b]
            at = (jnp.int32(0), row, jnp.int32(0), start_B[b] - edges[index], jnp.int32(0))
            return jax.tree.map(
                lambda whole, part: jax.lax.dynamic_update_slice(
                    whole, jax.lax.dynamic_slice_in_dim(part, b, 1, axis=1), at
                ),
                blocks,
                parts,
            )

        return jax.lax.fori_loop(bounds[index], bounds[index + 1], put_row, blocks)

    return [put(index, blocks) for index, blocks in enumerate(by_place)]


def _put_at_once(edges, by_place, parts, rows, start_B, num_tokens_B):
    """One token a row, elsewhere: one scatter for each array, which drops other blocks' rows."""
    if rows is None:
        rows = jnp.arange(start_B.shape[0], dtype=jnp.int32)

    def put(begin, end, blocks):
        here_B = (num_tokens_B > 0) & (start_B >= begin) & (start_B < end)
        slot_B = jnp.where(here_B, start_B - begin, end - begin)  # one too many: dropped
        return jax.tree.map(
            lambda whole, part_lBK1X: whole.at[:, rows, :, slot_B].set(
                part_lBK1X[:, :, :, 0].transpose(1, 0, 2, 3), mode="drop", unique_indices=True
            ),
            blocks,
            parts,
        )

    return [
        put(*ends, blocks) for ends, blocks in zip(itertools.pairwise(edges), by_place, strict=True)
    ]
