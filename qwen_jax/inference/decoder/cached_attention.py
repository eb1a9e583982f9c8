"""Attention of new tokens to one another and to a KV cache, block by block, with an online softmax.

A block past the end of a sequence leaves its result bit-identical, so a result does not depend on
the lengths of other sequences.

B sequences, T new tokens, C positions in a block, N heads, K key-value heads, G = N / K, H head
size.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.inference.decoder import kv_cache
from qwen_jax.types import Array, CacheBlock

_MASKED = -1e30  # finite: exp(_MASKED - _MASKED) is 1, not NaN
_QUERY_CHUNK = 128  # queries of a long prompt computed at a time


def attend(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    cached: tuple[CacheBlock, ...],
    index,
    *,
    query_at: Array,
    key_at: Array,
    in_use: Array,
    slots: Array | None,
    window,
) -> Array:
    """Computes attention of the new tokens to themselves and to the cache of layer `index`.

    Args:
      query_at, key_at: positions of the queries [B, T] and of the new keys.

    Returns:
      The output [B, T, N, H] in q's dtype; softmax statistics are float32.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    G = N // K
    q = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 1, 3, 4).reshape(B, K, T * G, H)
    position = jnp.repeat(query_at, G, axis=1)[:, None, :, None]  # [B, 1, T G, 1]
    first_seen = None if window is None else position - jnp.asarray(window, jnp.int32) + 1
    keys, values = jnp.swapaxes(k_BTKH, 1, 2), jnp.swapaxes(v_BTKH, 1, 2)
    carry = _over_new(q, keys, values, key_at, position, first_seen, group=G)

    length = key_at[:, 0]
    longest = jnp.max(jnp.where(in_use, length, 0))
    earliest = jnp.int32(0)
    if first_seen is not None:
        earliest = jnp.min(jnp.where(in_use, first_seen[:, 0, 0, 0], np.iinfo(np.int32).max))
    for blocks, begin, end in _grouped(cached, min_size=1 if T == 1 else 2 * _QUERY_CHUNK):

        def add_block(carry, blocks=blocks, begin=begin, end=end):
            pairs = [_read(block, index, slots, q.dtype) for block in blocks]
            keys, values = (jnp.concatenate(parts, axis=2) for parts in zip(*pairs, strict=True))
            key_position = jnp.arange(begin, end, dtype=jnp.int32)[None, None, None]
            visible = key_position < length[:, None, None, None]
            if first_seen is not None:
                visible = visible & (key_position >= first_seen)
            return _add(carry, q, keys, values, visible)

        # Skip blocks that no sequence needs.
        carry = jax.lax.cond(
            (longest > begin) & (earliest < end), add_block, lambda carry: carry, carry
        )
    _, total, out = carry
    out = (out / total).astype(q.dtype)  # the sum is positive: every token attends to itself
    return out.reshape(B, K, T, G, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)


def _over_new(q, keys, values, key_at, position, first_seen, *, group: int):
    """Returns the online-softmax carry of `_add` over the new keys.

    Args:
      q: [B, K, T G, H]; keys, values: [B, K, T, H].
      position, first_seen: the position of each query and the first position that it attends to,
        [B, 1, T G, 1]; first_seen=None: no window.
      group: G, query heads per key-value head.
    """
    B, K, M, H = q.shape
    T, new = M // group, keys.shape[2]

    def part_of(begin: int, end: int, seen: int):
        """Returns the carry of queries `begin` to `end` over the first `seen` new keys."""
        at, part = key_at[:, None, None, :seen], slice(begin * group, end * group)
        visible = at <= position[:, :, part]
        if first_seen is not None:
            visible = visible & (at >= first_seen[:, :, part])
        shape = (B, K, (end - begin) * group)
        empty = (
            jnp.full((*shape, 1), _MASKED, jnp.float32),
            jnp.zeros((*shape, 1), jnp.float32),
            jnp.zeros((*shape, H), jnp.float32),
        )
        return _add(empty, q[:, :, part], keys[:, :, :seen], values[:, :, :seen], visible)

    if T != new:  # only the last token of each sequence
        return part_of(0, T, new)
    # A chunk of queries attends to no new key past its own end.
    ends = [*range(0, T, _QUERY_CHUNK), T]
    chunks = [part_of(*bounds, seen=bounds[1]) for bounds in itertools.pairwise(ends)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *chunks)


def _grouped(cached: tuple[CacheBlock, ...], *, min_size: int):
    """Yields groups of adjacent blocks of at least `min_size` positions, with begin and end.

    Concatenating blocks pays off for many queries, but not for one.
    """
    edges, first = kv_cache.starts(cached), 0
    for i, end in enumerate(edges[1:], 1):
        if end - edges[first] >= min_size or i == len(cached):
            yield cached[first:i], edges[first], end
            first = i


def _read(block: CacheBlock, index, slots: Array | None, dtype) -> tuple[Array, Array]:
    """Returns a layer's keys and values [B, K, C, H] for the sequences of a call."""

    def part(x):
        x = x[0] if x.shape[0] == 1 else jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
        return kv_cache.take_slots(x, slots)

    block = jax.tree.map(part, block)
    return (
        kv_cache.dequantize(block.keys, block.key_scales, dtype),
        kv_cache.dequantize(block.values, block.value_scales, dtype),
    )


def _add(carry, q: Array, k: Array, v: Array, visible: Array):
    """Adds a block to an online softmax; the carry is (maximum, sum, weighted values) so far.

    q [B, K, M, H], k and v [B, K, C, H], visible broadcasts to [B, K, M, C].
    """
    top, total, out = carry
    batched = ((0, 1), (0, 1))
    scores = jax.lax.dot_general(q, k, (((3,), (3,)), batched), preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(1.0 / math.sqrt(q.shape[3]))
    scores = jnp.where(jnp.broadcast_to(visible, scores.shape), scores, jnp.float32(_MASKED))
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    weights, rescale = jnp.exp(scores - new_top), jnp.exp(top - new_top)
    if q.shape[0] == q.shape[2] == 1:
        # One query of one sequence: with two such matmuls per block, XLA:CPU takes ten seconds
        # longer to compile a small model.
        part = jnp.sum(weights[:, :, 0, :, None] * v.astype(jnp.float32), axis=2)[:, :, None]
    else:
        part = jax.lax.dot_general(
            weights.astype(v.dtype), v, (((3,), (2,)), batched), preferred_element_type=jnp.float32
        )
    return (
        new_top,
        total * rescale + jnp.sum(weights, axis=-1, keepdims=True),
        out * rescale + part,
    )
