"""One attention layer: QKV with bias, rotation, the kernel or the cache, output projection.

B batch, T query positions, S cache slots, D model, N heads, K key-value heads, H head size.
"""

import math

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.kernels.attention import attention
from qwen_jax.model.layers import linear
from qwen_jax.model.rope import rotate
from qwen_jax.parallel.rules import constrain
from qwen_jax.types import Array, AttentionParams


def project_qkv(x_BTD: Array, params: AttentionParams, *, table, query_scale_BT: Array | None):
    """Rotated queries and keys, and values: [B, T, N, H], [B, T, K, H], [B, T, K, H].

    Args:
      table: cos and sin of rope.rotary_table.
      query_scale_BT: LogN factors (report 2.3.2) or None.
    """
    def project(weight, bias, heads_axis):
        y = linear(x_BTD, weight.reshape(weight.shape[0], -1))
        y = y.reshape(*y.shape[:2], *bias.shape) + bias.astype(y.dtype)[None, None]
        return constrain(y, "batch", "length", heads_axis, None)

    q_BTNH = rotate(project(params.wq, params.bq, "act_heads"), table)
    k_BTKH = rotate(project(params.wk, params.bk, "act_kv_heads"), table)
    v_BTKH = project(params.wv, params.bv, "act_kv_heads")
    if query_scale_BT is not None:
        scaled = q_BTNH.astype(jnp.float32) * query_scale_BT[:, :, None, None]
        q_BTNH = scaled.astype(q_BTNH.dtype)
    return q_BTNH, k_BTKH, v_BTKH


def project_out(out_BTNH: Array, params: AttentionParams) -> Array:
    """[B, T, N, H] -> [B, T, D]."""
    B, T, N, H = out_BTNH.shape
    return linear(out_BTNH.reshape(B, T, N * H), params.wo.reshape(N * H, -1))


def self_attention(x_BTD: Array, params: AttentionParams, *, config: ModelConfig, table,
                   query_scale_BT: Array | None, segment_ids: Array | None) -> Array:
    """Attention of a whole row over itself: training, scoring, prefill without a cache."""
    q, k, v = project_qkv(x_BTD, params, table=table, query_scale_BT=query_scale_BT)
    out = attention(q, k, v, segment_ids=segment_ids, implementation=config.attention)
    return project_out(out, params)


def cached_attention(q_BTNH: Array, keys_BSKH: Array, values_BSKH: Array,
                     positions_BT: Array) -> Array:
    """Attention of a few new tokens over a cache; a query at position p sees the slots 0..p.

    For the handful of queries of a decoding step the scores are small; no kernel is needed.
    """
    B, T, N, H = q_BTNH.shape
    S, K = keys_BSKH.shape[1:3]
    q = q_BTNH.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, keys_BSKH.astype(q.dtype),
                        preferred_element_type=jnp.float32) / jnp.float32(math.sqrt(H))
    slot = jnp.arange(S, dtype=jnp.int32)
    mask = (slot[None, None, :] <= positions_BT[:, :, None])[:, None, None]
    weights = jax.nn.softmax(
        jnp.where(jnp.broadcast_to(mask, scores.shape), scores, jnp.float32(-1e30)), axis=-1)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(q.dtype), values_BSKH.astype(q.dtype))
    return out.reshape(B, T, N, H)
