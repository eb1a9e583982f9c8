"""The decoder with a KV cache: runs the model on a few new tokens of each sequence at a time.

New tokens attend to one another and then to the cache (cached_attention.py). Their keys and values
are written to it at the end, for all layers together.

Keys are cached after rotation, each layer with its own base (rope.layer_extension). The prompt
length determines the base for every layer and sequence. Unrotated keys would allow a conversation
to grow past the next doubling. But every step would rotate all of them again, and they would still
come from hidden states computed with the old base. A longer prompt is therefore recomputed
(batching/prefix.py).

B sequences, T new tokens, G scored tokens, D model, N heads, K key-value heads, H head size,
V vocabulary, L layers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.inference.decoder import kv_cache
from qwen_jax.inference.decoder.cached_attention import attend
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
    x, cache = _hidden_cached(
        params,
        tokens,
        cache,
        config=config,
        num_tokens=num_tokens,
        slots=slots,
        prompt_lengths=prompt_lengths,
        empty=empty,
    )
    return _logits(params, x, config)[:, 0], cache


def score_cached(
    params: Params | PrepackedParams,
    tokens: Array,
    cache: KVCache,
    positions: Array,
    targets: Array,
    *,
    config: ModelConfig,
    num_tokens: Array,
    prompt_lengths: Array,
    num_top: int = 0,
    vocab_size: Array | None = None,
) -> tuple[Any, ...]:
    """Runs the model on the next `tokens` of all slots, and scores given next tokens.

    Args:
      positions, targets: int32 [B, G]; pairs of an index in T and the token that follows there.
      num_top: alternatives A to return.
      vocab_size: int32 []; ids at or above it are no alternatives. None: all are.
      params, tokens, cache, num_tokens, prompt_lengths: as in forward_cached.

    Returns:
      Log-probabilities float32 [B, G] of the targets; bool [B, G], whether each target is the first
      id with the largest logit; with num_top, ids int32 [B, G, A] and log-probabilities float32
      [B, G, A] of the most likely tokens, in descending order; and the cache.
    """
    x_BTD, cache = _hidden_cached(
        params,
        tokens,
        cache,
        config=config,
        num_tokens=num_tokens,
        prompt_lengths=prompt_lengths,
        only_last=False,
    )
    x_BGD = jnp.take_along_axis(x_BTD, positions[..., None], axis=1, mode="promise_in_bounds")
    logits_BGV = _logits(params, x_BGD, config)
    chosen_BG = jnp.take_along_axis(logits_BGV, targets[..., None], axis=2)[..., 0]
    total_BG = jax.nn.logsumexp(logits_BGV, axis=2)
    most_likely_BG = jnp.argmax(logits_BGV, axis=2) == targets
    if not num_top:
        return chosen_BG - total_BG, most_likely_BG, cache
    if vocab_size is not None:
        real_V = jnp.arange(logits_BGV.shape[2], dtype=jnp.int32) < vocab_size
        logits_BGV = jnp.where(real_V[None, None], logits_BGV, -jnp.inf)
    top_BGA, ids_BGA = jax.lax.top_k(logits_BGV, num_top)
    return chosen_BG - total_BG, most_likely_BG, ids_BGA, top_BGA - total_BG[..., None], cache


def _logits(params: Params | PrepackedParams, x: Array, config: ModelConfig) -> Array:
    """Returns logits float32 [B, T, V] of the last layer's output [B, T, D]."""
    x = rms_norm(x, params.final_norm, epsilon=config.norm_epsilon)
    head = params.embed if params.head is None else params.head
    inputs_last = isinstance(params, PrepackedParams) or params.head is None
    return unembed(x, head, matmul=prepacked_linear if inputs_last else linear)


def _hidden_cached(
    params: Params | PrepackedParams,
    tokens: Array,
    cache: KVCache,
    *,
    config: ModelConfig,
    num_tokens: Array | None,
    slots: Array | None = None,
    prompt_lengths: Array | None,
    empty: bool = False,
    only_last: bool = True,
) -> tuple[Array, KVCache]:
    """Returns the last layer's output, and the cache with the new tokens.

    Args:
      only_last: whether to return only that of each sequence's last real token, [B, 1, D], and
        otherwise [B, T, D]. The rest is as in forward_cached.
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
        only_last=only_last and T > 1,
        config=config,
    )
    x = embed(tokens, params.embed, dtype=jnp.dtype(config.compute_dtype))
    x = constrain(x, "batch", "length", "act_embed")
    codes = None
    if not rope.depends_on_layer(config):  # otherwise each layer has its own codes
        codes = jax.lax.optimization_barrier(new.position_codes(new.positions, window=None))
    block = functools.partial(_layer, new=new, codes=codes)
    # All reads precede the first write; otherwise XLA copies the blocks that are read later.
    x, pairs = jax.lax.optimization_barrier(_over_layers(block, x, cache, params.layers, new))
    cache = kv_cache.write(cache, pairs, slots=slots, start_B=lengths, num_tokens_B=counts)
    if new.only_last and x.shape[1] > 1:
        x = new.take_last(x)
    return x, cache.replace(
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
    only_last: bool  # whether the last layer's output is needed only for the last tokens
    config: ModelConfig

    def take_last(self, y: Array) -> Array:
        """Returns the entries of y [B, T, ...] at each sequence's last real token, [B, 1, ...]."""
        index = self.last.reshape(len(self.last), 1, *(1,) * (y.ndim - 2))
        return jnp.take_along_axis(y, index, axis=1, mode="promise_in_bounds")

    def position_codes(self, positions_BT: Array, *, window):
        """Returns the rotary table and LogN factors (or None) for a layer with this window."""
        config = self.config
        alpha, query_scale = rope.layer_extension(self.ntk_lengths, positions_BT, window, config)
        return rope.model_table(positions_BT, config, alpha), query_scale


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
        q, k, v = project_qkv(
            y,
            layer.attention,
            table=codes[0],
            query_scale_BT=codes[1],
            epsilon=config.norm_epsilon,
        )
    if new.empty and not only_last:
        y = partitioned_attention(
            q, k, v, segment_ids=None, window=window, implementation=config.attention
        )
    else:
        y = attend(
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


def _over_layers(block, x, cache: KVCache, layers, new: _NewTokens):
    """Runs all layers; returns x, and the new keys and values of each stack in the cache.

    If layers are not scanned, the last layer computes keys and values for all tokens, but the rest
    only for the last token. This saves a fifth of the prefill compute of a four-layer toy model.
    """
    config, pairs = new.config, []
    windows = config.layer_windows(inference=True)
    if isinstance(layers, tuple):
        for i, layer in enumerate(layers):
            stack = i if len(cache.blocks) > 1 else 0
            x, pair = block(
                x,
                layer,
                cache.blocks[stack],
                i - stack,
                windows and windows[i],
                only_last=new.only_last and i == len(layers) - 1,
            )
            pairs.append(jax.tree.map(lambda y: y[None], pair))
        if len(cache.blocks) == 1:
            pairs = [tuple(map(jnp.concatenate, zip(*pairs, strict=True)))]
        return x, pairs
    assert len(cache.blocks) == 1, "a cache made layer_by_layer needs prepacked weights"
    # The scan only reads the cache, so its carry has no array of that size.
    x, pair = jax.lax.scan(
        lambda x, xs: block(x, xs[0], cache.blocks[0], *xs[1:]),
        x,
        (layers, jnp.arange(config.num_layers, dtype=jnp.int32), rope.layer_windows(config)),
    )
    return x, [pair]
