"""The definition of attention, in float32, against which every backend is tested.

B batch, T query positions, S key positions, N heads, K key-value heads, H head size.
"""

import jax
import jax.numpy as jnp

from qwen_jax.types import Array

PLATFORM = None


def refuse(call) -> str | None:
    """Returns None: this backend can run every call."""
    del call
    return None


def visible(
    T: int,
    S: int,
    segment_ids_BT: Array | None,
    positions_BT: Array | None,
    window: Array | int | None,
) -> Array:
    """Returns the mask, bool [B or 1, T, S]: whether query t sees key s.

    A key is visible if it is not after the query, is in the same document, is at most window - 1
    tokens before the query, and neither of the two is padding.
    """
    key_index = jnp.arange(S, dtype=jnp.int32)[None, None, :]
    if positions_BT is None or T == S:
        query_index = (jnp.arange(T, dtype=jnp.int32) + (S - T))[None, :, None]
    else:
        query_index = positions_BT[:, :, None]
    mask = key_index <= query_index
    if window is not None:
        mask = jnp.logical_and(mask, query_index - key_index < window)
    if segment_ids_BT is not None:
        query_segment, key_segment = segment_ids_BT[:, :, None], segment_ids_BT[:, None, :]
        mask = mask & (query_segment == key_segment) & (query_segment != 0)
    return mask


def attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, segment_ids, positions, window, scale: float
) -> Array:
    """Computes softmax(q k^T scale + mask) v in float32, with the full [T, S] array in memory."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q = q_BTNH.astype(jnp.float32).reshape(B, T, K, N // K, H)
    k, v = k_BSKH.astype(jnp.float32), v_BSKH.astype(jnp.float32)
    mask = visible(T, S, segment_ids, positions, window)[:, None, None]  # [B, 1, 1, T, S]
    mask = jnp.broadcast_to(mask, (B, K, N // K, T, S))
    exact = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, precision=exact) * jnp.float32(scale)
    top = jnp.max(scores, axis=-1, where=mask, initial=-1e30, keepdims=True)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - top, 0.0)), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)  # zeros for a query that sees no key
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v, precision=exact)
    return out.reshape(B, T, N, H).astype(q_BTNH.dtype)
