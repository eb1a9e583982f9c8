"""One attention layer: QKV projection, QK-norm, rotary embedding, the kernel, output projection.

B batch, T query positions, S key positions, D model, N heads, K key-value heads, H head size.
"""

import math

import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.kernels import mask
from qwen_jax.kernels.attention import Choice, attention, call_of, choose
from qwen_jax.kernels.backend import RESIDUALS, Call
from qwen_jax.kernels.platform import Target, target_of
from qwen_jax.model.layers import linear, rms_norm
from qwen_jax.model.rope import rotate
from qwen_jax.parallel.ring import Ring, ring_attention, ring_of, to_ring
from qwen_jax.parallel.sharding import constrain, map_shards, shards_evenly
from qwen_jax.types import Array, AttentionParams, Device


def project_qkv(
    x_BTD: Array,
    params: AttentionParams,
    *,
    table,
    query_scale_BT: Array | None,
    epsilon: float,
    matmul=linear,
):
    """Returns rotated queries [B, T, N, H], rotated keys [B, T, K, H] and values [B, T, K, H].

    Args:
      table: (cos, sin) from rope.rotary_table.
      query_scale_BT: LogN factors (report 2.5), or None.
      epsilon: that of QK-norm.
      matmul: function that multiplies by a weight: `linear` or lora.adapted_linear.
    """

    def project(weight, bias, heads_axis):
        y = matmul(x_BTD, weight.reshape(weight.shape[0], -1))
        y = y.reshape(*y.shape[:2], *weight.shape[1:])
        if bias is not None:
            y = y + bias.astype(y.dtype)[None, None]
        return constrain(y, "batch", "length", heads_axis, None)

    q_BTNH = normalized_heads(project(params.wq, params.bq, "act_heads"), params.q_norm, epsilon)
    k_BTKH = normalized_heads(project(params.wk, params.bk, "act_kv_heads"), params.k_norm, epsilon)
    q_BTNH, k_BTKH = positioned_query(q_BTNH, table, query_scale_BT), rotate(k_BTKH, table)
    return q_BTNH, k_BTKH, project(params.wv, params.bv, "act_kv_heads")


def normalized_heads(x_BTNH: Array, scale_H: Array | None, epsilon: float) -> Array:
    """Applies QK-norm, an RMSNorm over each head; without a scale, returns the input."""
    return x_BTNH if scale_H is None else rms_norm(x_BTNH, scale_H, epsilon=epsilon)


def positioned_query(q_BTNH: Array, table, query_scale_BT: Array | None) -> Array:
    """Rotates queries and multiplies them by the LogN factors, if given."""
    q_BTNH = rotate(q_BTNH, table)
    if query_scale_BT is None:
        return q_BTNH
    scaled = q_BTNH.astype(jnp.float32) * query_scale_BT[:, :, None, None]
    return scaled.astype(q_BTNH.dtype)


def project_out(out_BTNH: Array, params: AttentionParams, *, matmul=linear) -> Array:
    """Applies the output projection: [B, T, N, H] -> [B, T, D]."""
    B, T, N, H = out_BTNH.shape
    wo = params.wo.reshape(-1, params.wo.shape[-1])
    return matmul(out_BTNH.reshape(B, T, N * H), wo)


def self_attention(
    x_BTD: Array,
    params: AttentionParams,
    *,
    config: ModelConfig,
    table,
    query_scale_BT: Array | None,
    segment_ids: Array | None,
    window: Array | None,
    ring: Ring | None = None,
    matmul=linear,
) -> Array:
    """Computes self-attention over full sequences: training, scoring, prefill without a cache.

    Args:
      segment_ids: int32 [B, T] in sequence order, or None.
      ring: layout of x_BTD if its tokens are not in sequence order.
    """
    q, k, v = project_qkv(
        x_BTD,
        params,
        table=table,
        query_scale_BT=query_scale_BT,
        epsilon=config.norm_epsilon,
        matmul=matmul,
    )
    out = partitioned_attention(
        q, k, v, segment_ids=segment_ids, window=window, implementation=config.attention, ring=ring
    )
    return project_out(out, params, matmul=matmul)


def partitioned_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    *,
    segment_ids: Array | None,
    window: Array | int | None,
    implementation: str | None,
    ring: Ring | None = None,
) -> Array:
    """Runs kernels.attention on a mesh: each device computes its own sequences and heads.

    Heads are sharded only if the key-value heads can be sharded too. Sharded sequences (mesh axis
    "context") use ring attention. If the backend has no BLOCK, sequences are gathered first.

    Args:
      ring: layout of q, k and v if their tokens are not in sequence order. segment_ids are always
        in sequence order.
    """
    (B, T, N), (S, K) = q_BTNH.shape[:3], k_BSKH.shape[1:3]
    choice = choose(call_of(q_BTNH, k_BSKH, segment_ids=segment_ids, window=window), implementation)
    shard_heads = N == K or shards_evenly(K, "act_kv_heads")
    names = ("act_heads", "act_kv_heads") if shard_heads else (None, None)
    block = getattr(choice.module, "BLOCK", None)
    if ring is None and block is not None and T == S:
        ring = ring_of(T, balanced=False)
    if ring is not None:
        k_start = mask.first_key(B, T, S, segment_ids=segment_ids, positions=None, window=window)
        return ring_attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            to_ring(k_start, ring),
            block=block,
            ring=ring,
            scale=1.0 / math.sqrt(q_BTNH.shape[-1]),
            names=RESIDUALS,
            heads=names,
        )
    optional = {"segment_ids": (segment_ids, ("batch", None)), "window": (window, ())}
    given = {key: pair for key, pair in optional.items() if pair[0] is not None}

    def run(q, k, v, *rest):
        return attention(q, k, v, implementation=choice.name, **dict(zip(given, rest, strict=True)))

    arrays = (q_BTNH, k_BSKH, v_BSKH, *(jnp.asarray(array) for array, _ in given.values()))
    heads = tuple(("batch", None, name, None) for name in names)
    return map_shards(
        run,
        *arrays,
        axes=(heads[0], heads[1], heads[1], *(axes for _, axes in given.values())),
        out_axes=heads[0],
    )


def sequence_order(tokens_BT: Array, config: ModelConfig) -> Ring | None:
    """Returns the token order between the embedding and the final norm: a balanced ring, or None
    for sequence order."""
    ring = ring_of(tokens_BT.shape[1])
    if ring is None or not ring.balanced:
        return None
    module = _choose(config, target_of(tokens_BT), tokens_BT.shape[1]).module
    return ring if hasattr(module, "BLOCK") else None


def implementation_for(config: ModelConfig, device: Device) -> Choice:
    """Returns the attention backend that a training step of this model uses on this device.

    Raises:
      KernelError: the backend set in config.attention does not support it.
    """
    return _choose(config, Target.of(device), config.context_length)


def _choose(config: ModelConfig, target: Target, T: int) -> Choice:
    call = Call(
        target=target,
        B=1,
        T=T,
        S=T,
        N=config.num_heads,
        K=config.kv_heads,
        H=config.head_dim,
        dtype=jnp.dtype(config.compute_dtype),
        segments=True,
        window=None if config.layer_windows(inference=False) is None else "traced",
    )
    return choose(call, config.attention)
