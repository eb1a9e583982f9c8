"""The decoder: embedding, scan over the layers, norm, logits. Report: 2.3.

Training differentiates `hidden_states`. `forward` adds context extension for inference (2.5). The
forward pass with a KV cache is in inference/decoder/cached_forward.py.

B batch, T positions, D model, V vocabulary, L layers.
"""

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.kernels.backend import RESIDUALS
from qwen_jax.model import rope
from qwen_jax.model.attention import self_attention, sequence_order
from qwen_jax.model.embedding import embed
from qwen_jax.model.layers import MATMUL_OUT, dropout, rms_norm, swiglu, unembed
from qwen_jax.model.lora import adapted_linear
from qwen_jax.parallel.ring import from_ring, to_ring
from qwen_jax.parallel.sharding import constrain
from qwen_jax.types import Array, Params

# Both policies save the residuals of the attention kernel (D + N numbers per token), because its
# forward pass is the only part of a layer that is too expensive to run twice.
_ATTENTION = jax.checkpoint_policies.save_only_these_names(*RESIDUALS)
_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names(MATMUL_OUT, *RESIDUALS),
    "block": _ATTENTION,
}


def forward(
    params: Params,
    tokens: Array,
    *,
    config: ModelConfig,
    segment_ids: Array | None = None,
    positions: Array | None = None,
    inference: bool = True,
) -> Array:
    """Returns the logits of the next token at every position.

    Args:
      tokens: int32 [B, T].
      segment_ids: int32 [B, T], contiguous documents, 0 for padding; None: one document per
        sequence.
      positions: int32 [B, T], each token's position in its document; None: 0..T-1, restarting
        with each segment.
      inference: whether to apply dynamic NTK, LogN and layer windows beyond config.context_length,
        as set in config.extension (report 2.5). Training never applies them.

    Returns:
      Logits, float32 [B, T, V].

    Raises:
      ConfigError: tokens have no batch axis.
    """
    if tokens.ndim != 2:
        raise ConfigError(
            f"tokens have shape {tokens.shape}, not [B, T].",
            "forward(tokens)",
            "pass int32 [B, T]; for a single sequence, pass tokens[None].",
        )
    if positions is None:
        positions = default_positions(tokens, segment_ids)
    length = true_lengths(positions, segment_ids) if inference else None
    x = hidden_states(
        params, tokens, positions, config=config, segment_ids=segment_ids, length_B=length
    )
    return unembed(x, head_matrix(params))


def hidden_states(
    params: Params,
    tokens_BT: Array,
    positions_BT: Array,
    *,
    config: ModelConfig,
    segment_ids: Array | None = None,
    length_B: Array | None = None,
    dropout_key: Array | None = None,
) -> Array:
    """Returns the normalized last hidden states, [B, T, D] in config.compute_dtype.

    Args:
      length_B: int32, true length of each sequence, which enables config.extension; None: no
        context extension, as in training.
      dropout_key: random key, which enables dropout at rate config.dropout; None: no dropout.
    """
    # Dropout masks depend on the position, so with dropout, tokens stay in sequence order.
    key = dropout_key if config.dropout > 0 else None
    ring = sequence_order(tokens_BT, config) if key is None else None
    tokens_BT, positions_BT = to_ring(tokens_BT, ring), to_ring(positions_BT, ring)

    def position_factors(window):
        """Returns the rotary table and the LogN factors of a layer with this window."""
        alpha_B = query_scale_BT = None
        if length_B is not None:
            alpha_B, query_scale_BT = rope.layer_extension(length_B, positions_BT, window, config)
        table = rope.model_table(positions_BT, config, alpha_B)
        # The barrier prevents XLA from recomputing the sines at each use.
        return jax.lax.optimization_barrier(table), query_scale_BT

    windows_L = rope.layer_windows(config, inference=length_B is not None)
    by_layer = length_B is not None and rope.depends_on_layer(config)
    shared = None if by_layer else position_factors(None)
    x_BTD = embed(tokens_BT, params.embed, dtype=jnp.dtype(config.compute_dtype))
    x_BTD = dropout(x_BTD, rate=config.dropout, key=_fold(key, config.num_layers))
    x_BTD = constrain(x_BTD, "batch", "length", "act_embed")

    def block(x_BTD, of_layer):
        layer, index, window = of_layer
        attention_key, mlp_key = _fold(key, 2 * index + 101), _fold(key, 2 * index + 102)
        table, query_scale_BT = position_factors(window) if shared is None else shared
        y = self_attention(
            rms_norm(x_BTD, layer.attention_norm, epsilon=config.norm_epsilon),
            layer.attention,
            config=config,
            table=table,
            window=window,
            query_scale_BT=query_scale_BT,
            segment_ids=segment_ids,
            ring=ring,
            matmul=adapted_linear,
        )
        x_BTD = x_BTD + dropout(y, rate=config.dropout, key=attention_key)
        y = swiglu(
            rms_norm(x_BTD, layer.mlp_norm, epsilon=config.norm_epsilon),
            layer.mlp,
            matmul=adapted_linear,
        )
        x_BTD = x_BTD + dropout(y, rate=config.dropout, key=mlp_key)
        return constrain(x_BTD, "batch", "length", "act_embed"), None

    if config.remat != "none":
        block = jax.checkpoint(block, policy=_REMAT_POLICIES[config.remat], prevent_cse=False)
    indices = jnp.arange(config.num_layers, dtype=jnp.int32)
    x_BTD, _ = jax.lax.scan(
        block, x_BTD, (params.layers, indices, windows_L), unroll=config.unroll_layers
    )
    return from_ring(rms_norm(x_BTD, params.final_norm, epsilon=config.norm_epsilon), ring)


def true_lengths(positions_BT: Array, segment_ids: Array | None) -> Array:
    """Returns the length of the longest document in each sequence, without padding: int32 [B]."""
    real = positions_BT if segment_ids is None else jnp.where(segment_ids != 0, positions_BT, -1)
    return jnp.max(real, axis=1) + 1


def head_matrix(params: Params) -> Array:
    """Returns the output projection, [D, V]; if tied, this is the embedding's transpose."""
    return params.embed.T if params.head is None else params.head


def default_positions(tokens_BT: Array, segment_ids: Array | None) -> Array:
    """Returns positions 0..T-1 that restart with each segment: int32 [B, T]."""
    index = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
    if segment_ids is None:
        return index
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return index - jax.lax.cummax(jnp.where(segment_ids != before, index, 0), axis=1)


def _fold(key: Array | None, data) -> Array | None:
    return None if key is None else jax.random.fold_in(key, data)
