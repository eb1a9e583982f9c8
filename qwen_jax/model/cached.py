"""The decoder over a KV cache: the same model, a few new tokens of each row at a time.

Attention goes over the slots in use block by block with a running maximum. A block beyond a row's
length changes nothing, not even a bit, so a row's result does not depend on how long others are.

Keys are cached rotated, each layer with its own base (rope.layer_extension), which the prompt's
length fixes for every layer and row. Keys cached unrotated could follow a conversation that grows
past the next doubling, but would be rotated again, all of them, at every step, and still belong to
hidden states of the old base; so a longer prompt is computed anew instead (generate/prefix.py).

B rows, T new tokens, S slots, C slots in a block, D model, N heads, K key-value heads, G = N / K,
H head size, V vocabulary, L layers.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.model import rope
from qwen_jax.model.attention import project_out, project_qkv
from qwen_jax.model.layers import embed, linear, rms_norm, swiglu, unembed
from qwen_jax.model.turned import TurnedParams, turned_linear
from qwen_jax.parallel.rules import constrain
from qwen_jax.types import Array, KVCache, LayerParams, Params

BLOCK = 128  # slots that attention reads at a time
_MASKED = -1e30  # finite: exp(_MASKED - _MASKED) is 1 and no NaN
_CACHE_AXES = (None, "batch", "act_kv_heads", None, None)


def init_cache(config: ModelConfig, batch_size: int, slots: int, *, dtype=None) -> KVCache:
    """An empty cache of at least `slots` tokens per row (whole blocks), 2 L B S K H entries.

    Args:
      dtype: of the entries; "int8" adds two float32 numbers per token, head, and key or value.
        None: config.compute_dtype.
    """
    if slots > BLOCK:
        slots = -(-slots // BLOCK) * BLOCK
    shape = (config.num_layers, batch_size, config.kv_heads, slots, config.head_dim)
    dtype = jnp.dtype(dtype or config.compute_dtype)

    def zeros(shape, dtype):
        return constrain(jnp.zeros(shape, dtype), *_CACHE_AXES)

    def scales():
        return zeros((*shape[:-1], 2), jnp.float32) if dtype == jnp.int8 else None

    return KVCache(keys=zeros(shape, dtype), values=zeros(shape, dtype), key_scales=scales(),
                   value_scales=scales(), lengths=jnp.zeros((batch_size,), jnp.int32),
                   ntk_lengths=jnp.zeros((batch_size,), jnp.int32))


def cache_bytes(config: ModelConfig, batch_size: int, slots: int, *, dtype=None) -> int:
    """Bytes of such a cache over all devices."""
    make = functools.partial(init_cache, config, batch_size, slots, dtype=dtype)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make)))


def forward_cached(params: Params | TurnedParams, tokens: Array, cache: KVCache, *,
                   config: ModelConfig, num_tokens: Array | None = None, first_row: Array | int = 0,
                   prompt_lengths: Array | None = None) -> tuple[Array, KVCache]:
    """The next `tokens` of some neighbouring rows, continuing after what the cache holds of them.

    A row's first call, with an empty cache, fixes NTK's alpha for all that follows (report 2.3.2).

    Args:
      params: weights, in the model's order or, faster on a CPU, in that of turned.turn.
      tokens: int32 [B, T]; row b's first num_tokens[b] are real, the rest is padding on the right.
        Of a row in use, length + T must not exceed the slots.
      num_tokens: int32 [B]; None: all T. A row with 0 stays as it is.
      first_row: the cache's row that row 0 of `tokens` continues; B rows from there on.
      prompt_lengths: int32 [B], the whole prompt's length where the first call brings a part of it;
        None: num_tokens.
    Returns:
      Logits float32 [B, V] after each row's last real token, and the cache.
    """
    B, T = tokens.shape
    first_row = jnp.asarray(first_row, jnp.int32)
    num_tokens = jnp.full((B,), T, jnp.int32) if num_tokens is None else num_tokens
    prompt_lengths = num_tokens if prompt_lengths is None else prompt_lengths
    lengths = jax.lax.dynamic_slice(cache.lengths, (first_row,), (B,))
    ntk_lengths = jnp.where((lengths == 0) & (num_tokens > 0), prompt_lengths,
                            jax.lax.dynamic_slice(cache.ntk_lengths, (first_row,), (B,)))
    positions = lengths[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
    place = Place(first_row, positions, num_tokens)
    x = embed(tokens, params.embed, dtype=jnp.dtype(config.compute_dtype))
    x = constrain(x, "batch", "length", "act_embed")
    position_codes = functools.partial(_position_codes, positions, ntk_lengths, config)
    product = turned_linear if isinstance(params, TurnedParams) else linear
    codes = None
    if config.extension.windows is None:  # else each layer has its own
        codes = jax.lax.optimization_barrier(position_codes(None))

    def block(x, cache, layer: LayerParams, index, window):
        table, query_scale = position_codes(window) if codes is None else codes
        y = rms_norm(x, layer.attention_norm, epsilon=config.norm_epsilon)
        q, k, v = project_qkv(y, layer.attention, table=table, query_scale_BT=query_scale,
                              product=product)
        cache = _write(cache, k, v, place, index)
        y = _attend(q, cache, place, index, window)
        x = x + project_out(y, layer.attention, product=product)
        y = rms_norm(x, layer.mlp_norm, epsilon=config.norm_epsilon)
        x = x + swiglu(y, layer.mlp, product=product)
        return constrain(x, "batch", "length", "act_embed"), cache

    x, cache = _over_layers(block, x, cache, params.layers, config)
    last = jnp.take_along_axis(x, jnp.maximum(num_tokens - 1, 0)[:, None, None], axis=1)
    last = rms_norm(last, params.final_norm, epsilon=config.norm_epsilon)
    if params.head is None:
        logits = unembed(last, params.embed, product=turned_linear)[:, 0]
    else:
        logits = unembed(last, params.head, product=product)[:, 0]

    def put(whole, part):
        return jax.lax.dynamic_update_slice(whole, part, (first_row,))

    return logits, cache.replace(lengths=put(cache.lengths, lengths + num_tokens),
                                 ntk_lengths=put(cache.ntk_lengths, ntk_lengths))


class Place:
    """Where new tokens stand: the first row, positions [B, T], how many are real [B]."""

    def __init__(self, first_row: Array, positions_BT: Array, num_tokens_B: Array):
        self.first_row, self.positions_BT = first_row, positions_BT
        self.last_B = jnp.where(num_tokens_B > 0, positions_BT[:, 0] + num_tokens_B - 1, -1)


def _over_layers(block, x, cache: KVCache, layers, config: ModelConfig):
    windows = config.extension.windows
    if isinstance(layers, tuple):
        for i, layer in enumerate(layers):
            x, cache = block(x, cache, layer, i, windows and windows[i])
        return x, cache
    index = jnp.arange(config.num_layers, dtype=jnp.int32)
    # The cache is carried, not scanned over: it is updated where it lies.
    (x, cache), _ = jax.lax.scan(
        lambda carry, xs: (block(*carry, *xs), None), (x, cache),
        (layers, index, rope.layer_windows(config)))
    return x, cache


def _position_codes(positions_BT: Array, ntk_lengths_B: Array, config: ModelConfig, window):
    """The rotary table and LogN's factors (or None) of a layer that sees `window` tokens."""
    alpha, query_scale = rope.layer_extension(ntk_lengths_B, positions_BT, window, config)
    table = rope.rotary_table(positions_BT, head_size=config.head_dim, base=config.rope_base,
                              alpha_B=alpha)
    return table, query_scale


def _write(cache: KVCache, k_BTKH: Array, v_BTKH: Array, place: Place, layer) -> KVCache:
    """The cache with the new keys and values of one layer."""
    B = k_BTKH.shape[0]
    rows = place.first_row + jnp.arange(B, dtype=jnp.int32)
    at = jnp.stack([jnp.full((B,), layer, jnp.int32), rows, place.positions_BT[:, 0]], axis=1)
    # Indices are layer, row and slot; the update is all heads and sizes of T slots from there on.
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0, 1),
        scatter_dims_to_operand_dims=(0, 1, 3))

    def put(whole, part_BKTH):
        return jax.lax.scatter(whole, at, part_BKTH, numbers, indices_are_sorted=True,
                               unique_indices=True, mode=jax.lax.GatherScatterMode.CLIP)

    k_BKTH, v_BKTH = k_BTKH.transpose(0, 2, 1, 3), v_BTKH.transpose(0, 2, 1, 3)
    if cache.key_scales is None:
        return cache.replace(keys=put(cache.keys, k_BKTH.astype(cache.keys.dtype)),
                             values=put(cache.values, v_BKTH.astype(cache.values.dtype)))
    (k, k_scales), (v, v_scales) = quantize(k_BKTH), quantize(v_BKTH)
    return cache.replace(keys=put(cache.keys, k), values=put(cache.values, v),
                         key_scales=put(cache.key_scales, k_scales),
                         value_scales=put(cache.value_scales, v_scales))


def quantize(x: Array) -> tuple[Array, Array]:
    """int8 entries like x and float32 [..., 2], scale and shift: x = entry * scale + shift.

    The last axis' least and largest are the ends of the 256 steps, so that the error is at most
    half of (max - min) / 255.
    """
    x = x.astype(jnp.float32)
    low, high = jnp.min(x, axis=-1, keepdims=True), jnp.max(x, axis=-1, keepdims=True)
    scale = (high - low) / 255.0
    entry = jnp.round((x - low) / jnp.where(scale > 0, scale, 1.0)) - 128.0
    return (jnp.clip(entry, -128.0, 127.0).astype(jnp.int8),
            jnp.concatenate([scale, low + 128.0 * scale], axis=-1))


def dequantize(entries: Array, scales: Array | None, dtype) -> Array:
    """What `entries` stand for, in `dtype`."""
    if scales is None:
        return entries.astype(dtype)
    return (entries.astype(jnp.float32) * scales[..., :1] + scales[..., 1:]).astype(dtype)


def _attend(q_BTNH: Array, cache: KVCache, place: Place, layer, window) -> Array:
    """Attention of new tokens over the cache; one at position p sees the slots 0..p.

    Returns:
      [B, T, N, H] in q's dtype; softmax statistics are float32.
    """
    B, T, N, H = q_BTNH.shape
    K, S = cache.keys.shape[2:4]
    G, C = N // K, min(BLOCK, S)
    q = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    batched = ((0, 1), (0, 1))
    scale = jnp.float32(1.0 / math.sqrt(H))
    rows = jnp.broadcast_to(place.positions_BT[:, None, None], (B, 1, G, T)).reshape(B, 1, -1, 1)

    def read(whole, scales, start):
        def part(x):
            at = (jnp.asarray(layer, jnp.int32), place.first_row, jnp.int32(0), start, jnp.int32(0))
            return jax.lax.dynamic_slice(x, at, (1, B, K, C, x.shape[-1]))[0]
        return dequantize(part(whole), None if scales is None else part(scales), q.dtype)

    def add_block(i, carry):
        top, total, out = carry
        k = read(cache.keys, cache.key_scales, i * C)
        scores = jax.lax.dot_general(q, k, (((3,), (3,)), batched),
                                     preferred_element_type=jnp.float32) * scale
        slot = (i * C + jnp.arange(C, dtype=jnp.int32))[None, None, None]
        visible = slot <= rows
        if window is not None:
            visible &= slot > rows - jnp.asarray(window, jnp.int32)
        scores = jnp.where(jnp.broadcast_to(visible, scores.shape), scores, jnp.float32(_MASKED))
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights, rescale = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        v = read(cache.values, cache.value_scales, i * C)
        part = jax.lax.dot_general(weights.astype(v.dtype), v, (((3,), (2,)), batched),
                                   preferred_element_type=jnp.float32)
        return (new_top, total * rescale + jnp.sum(weights, axis=-1, keepdims=True),
                out * rescale + part)

    start = (jnp.full((B, K, G * T, 1), _MASKED, jnp.float32),
             jnp.zeros((B, K, G * T, 1), jnp.float32), jnp.zeros((B, K, G * T, H), jnp.float32))
    if S == C:
        _, total, out = add_block(jnp.int32(0), start)
    else:
        end = jnp.max(place.last_B) // C + 1
        begin = jnp.int32(0)
        if window is not None:
            first = place.positions_BT[:, 0] - jnp.asarray(window, jnp.int32) + 1
            first = jnp.where(place.last_B >= 0, first, np.iinfo(np.int32).max)
            begin = jnp.clip(jnp.min(first) // C, 0, end)
        _, total, out = jax.lax.fori_loop(begin, end, add_block, start)
    # A row without new tokens may have seen no block at all.
    out = (out / jnp.maximum(total, jnp.float32(1e-30))).astype(q.dtype)
    return out.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
