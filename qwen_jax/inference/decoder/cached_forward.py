"""The decoder with a KV cache: runs the model on a few new tokens of each sequence at a time.

New tokens attend to one another and then to the cache, block by block, with an online softmax. A
block past the end of a sequence leaves its result bit-identical, so a result does not depend on the
lengths of other sequences. New entries are written to the cache at the end, for all layers
together.

Keys are cached after rotation, each layer with its own base (rope.layer_extension). The prompt
length determines the base for every layer and sequence. Unrotated keys would allow a conversation
to grow past the next doubling. But every step would rotate all of them again, and they would still
come from hidden states computed with the old base. A longer prompt is therefore recomputed
(batching/prefix.py).

B sequences, T new tokens, C positions in a block, D model, N heads, K key-value heads, G = N / K,
H head size, V vocabulary, L layers.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.inference.decoder import kv_cache
from qwen_jax.inference.decoder.weights import (
    PrepackedLayer,
    PrepackedParams,
    prepacked_linear,
    prepacked_qkv,
    prepacked_swiglu,
)
from qwen_jax.model import rope
from qwen_jax.model.attention import (
    partitioned_attention,
    positioned_query,
    project_out,
    project_qkv,
)
from qwen_jax.model.embedding import embed
from qwen_jax.model.layers import linear, rms_norm, swiglu, unembed
from qwen_jax.model.rope import rotate
from qwen_jax.parallel.sharding import constrain
from qwen_jax.types import Array, CacheBlock, KVCache, LayerParams, Params

_MASKED = -1e30  # finite: exp(_MASKED - _MASKED) is 1, not NaN
_QUERY_CHUNK = 128  # queries of a long prompt computed at a time


def forward_cached(
    params: Params | PrepackedParams,
    tokens: Array,
    cache: KVCache,
    *,
    config: ModelConfig,
    num_tokens: Array | None = None,
    slots: Array | None = None,
    prompt_lengths: Array | None = None,
    empty: bool = False,
) -> tuple[Array, KVCache]:
    """Runs the model on the next `tokens` of each sequence, which follow its cached tokens.

    A sequence's first call, with an empty cache, fixes NTK's alpha for later calls (report 2.5).

    Args:
      params: weights in the model's layout or prepacked by weights.prepack, which is faster on a
        CPU and needs a cache with layer_by_layer=True.
      tokens: int32 [B, T]; the first num_tokens[b] of sequence b are real, the rest is padding on
        the right. For an active sequence, length + T must not exceed the cache's length.
      num_tokens: int32 [B], the number of real tokens of each sequence, which does not change if
        it is 0; None: all T.
      slots: int32 [B], the distinct decode slots of the sequences; an index past the last slot is
        padding. None: all slots, in order.
      prompt_lengths: int32 [B], the length of the full prompt if the first call has only part of
        it; None: num_tokens.
      empty: whether the cache is known to have no tokens of these sequences. T may then be large,
        and the training attention kernel is used.

    Returns:
      Logits float32 [B, V] after each sequence's last real token, and the cache.
    """
    B, T = tokens.shape
    counts = jnp.full((B,), T, jnp.int32) if num_tokens is None else num_tokens
    lengths = kv_cache.take_slots(cache.lengths, slots)
    ntk_lengths = jnp.where(
        (lengths == 0) & (counts > 0),
        counts if prompt_lengths is None else prompt_lengths,
        kv_cache.take_slots(cache.ntk_lengths, slots),
    )
    new = _NewTokens(
        positions=lengths[:, None] + jnp.arange(T, dtype=jnp.int32)[None],
        last=jnp.maximum(counts - 1, 0)[:, None],
        lengths=lengths,
        num_tokens=counts,
        ntk_lengths=ntk_lengths,
        slots=slots,
        empty=empty,
        config=config,
    )
    x = embed(tokens, params.embed, dtype=jnp.dtype(config.compute_dtype))
    x = constrain(x, "batch", "length", "act_embed")
    codes = None
    if config.extension.windows is None:  # otherwise each layer has its own codes
        codes = jax.lax.optimization_barrier(new.position_codes(new.positions, window=None))
    block = functools.partial(_layer, new=new, codes=codes)
    # All reads precede the first write; otherwise XLA copies the blocks that are read later.
    x, pairs = jax.lax.optimization_barrier(_over_layers(block, x, cache, params.layers, config))
    cache = kv_cache.write(cache, pairs, slots=slots, start_B=lengths, num_tokens_B=counts)
    x = x if x.shape[1] == 1 else new.take_last(x)
    x = rms_norm(x, params.final_norm, epsilon=config.norm_epsilon)
    head = params.embed if params.head is None else params.head
    inputs_last = isinstance(params, PrepackedParams) or params.head is None
    logits = unembed(x, head, matmul=prepacked_linear if inputs_last else linear)[:, 0]
    return logits, cache.replace(
        lengths=kv_cache.put_slots(cache.lengths, lengths + counts, slots),
        ntk_lengths=kv_cache.put_slots(cache.ntk_lengths, ntk_lengths, slots),
    )


@dataclasses.dataclass(frozen=True)
class _NewTokens:
    """Metadata of a call's new tokens, shared by all layers."""

    positions: Array  # int32 [B, T]
    last: Array  # int32 [B, 1]; index of each sequence's last real token in T
    lengths: Array  # int32 [B]; number of tokens already in the cache
    num_tokens: Array  # int32 [B]; number of real new tokens
    ntk_lengths: Array  # int32 [B]; prompt lengths, which determine NTK's alpha
    slots: Array | None  # int32 [B]; decode slots; None: all, in order
    empty: bool
    config: ModelConfig

    def take_last(self, y: Array) -> Array:
        """Returns the entries of y [B, T, ...] at each sequence's last real token, [B, 1, ...]."""
        index = self.last.reshape(len(self.last), 1, *(1,) * (y.ndim - 2))
        return jnp.take_along_axis(y, index, axis=1, mode="promise_in_bounds")

    def position_codes(self, positions_BT: Array, *, window):
        """Returns the rotary table and LogN factors (or None) for a layer with this window."""
        config = self.config
        alpha, query_scale = rope.layer_extension(self.ntk_lengths, positions_BT, window, config)
        table = rope.rotary_table(
            positions_BT, head_size=config.head_dim, base=config.rope_base, alpha_B=alpha
        )
        return table, query_scale


def _layer(
    x: Array,
    layer: LayerParams | PrepackedLayer,
    cached: tuple[CacheBlock, ...],
    index,
    window,
    *,
    new: _NewTokens,
    codes,
    only_last: bool = False,
):
    """Runs one decoder layer over the cache; returns x [B, T, D], and the new keys and values.

    Args:
      codes: the position codes of new.positions; None: compute this layer's own.
      only_last: whether to return x only for each sequence's last real token, [B, 1, D].
    """
    config = new.config
    codes = new.position_codes(new.positions, window=window) if codes is None else codes
    y = rms_norm(x, layer.attention_norm, epsilon=config.norm_epsilon)
    at = new.positions
    is_prepacked = isinstance(layer, PrepackedLayer)
    if is_prepacked:
        q, k, v = prepacked_qkv(y, layer, config)
        k = rotate(k, codes[0])
        if only_last:
            x, q = new.take_last(x), new.take_last(q)
            at = new.lengths[:, None] + new.last
            codes = new.position_codes(at, window=window)
        q = positioned_query(q, *codes)
    else:
        q, k, v = project_qkv(y, layer.attention, table=codes[0], query_scale_BT=codes[1])
    if new.empty and not only_last:
        y = partitioned_attention(
            q, k, v, segment_ids=None, window=window, implementation=config.attention
        )
    else:
        y = _attend(
            q,
            k,
            v,
            cached,
            index,
            query_at=at,
            key_at=new.positions,
            in_use=new.num_tokens > 0,
            slots=new.slots,
            window=window,
        )
    if is_prepacked:
        x = x + prepacked_linear(y.reshape(*y.shape[:2], -1), layer.wo)
    else:
        x = x + project_out(y, layer.attention)
    y = rms_norm(x, layer.mlp_norm, epsilon=config.norm_epsilon)
    x = x + (prepacked_swiglu(y, layer) if is_prepacked else swiglu(y, layer.mlp))
    return constrain(x, "batch", "length", "act_embed"), (k, v)


def _over_layers(block, x, cache: KVCache, layers, config: ModelConfig):
    """Runs all layers; returns x, and the new keys and values of each stack in the cache.

    If layers are not scanned, the last layer computes keys and values for all tokens, but the rest
    only for the last token. This saves a fifth of the prefill compute of a four-layer toy model.
    """
    windows, new = config.extension.windows, []
    if isinstance(layers, tuple):
        for i, layer in enumerate(layers):
            stack = i if len(cache.blocks) > 1 else 0
            x, pair = block(
                x,
                layer,
                cache.blocks[stack],
                i - stack,
                windows and windows[i],
                only_last=x.shape[1] > 1 and i == len(layers) - 1,
            )
            new.append(jax.tree.map(lambda y: y[None], pair))
        if len(cache.blocks) == 1:
            new = [tuple(map(jnp.concatenate, zip(*new, strict=True)))]
        return x, new
    assert len(cache.blocks) == 1, "a cache made layer_by_layer needs prepacked weights"
    # The scan only reads the cache, so its carry has no array of that size.
    x, pair = jax.lax.scan(
        lambda x, xs: block(x, xs[0], cache.blocks[0], *xs[1:]),
        x,
        (layers, jnp.arange(config.num_layers, dtype=jnp.int32), rope.layer_windows(config)),
    )
    return x, [pair]


def _attend(
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

    def attend(begin: int, end: int, seen: int):
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
        return attend(0, T, new)
    # A chunk of queries attends to no new key past its own end.
    ends = [*range(0, T, _QUERY_CHUNK), T]
    chunks = [attend(*bounds, seen=bounds[1]) for bounds in itertools.pairwise(ends)]
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
