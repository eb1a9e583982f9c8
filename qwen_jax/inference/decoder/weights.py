"""The weights as decoding reads them: cast once, and on a CPU in the order that decodes fastest.

B batch, T positions, V vocabulary, D model, N heads, K key-value heads, H head size, F ffn,
E outputs of a matrix.
"""

import functools

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from qwen_jax.config import ModelConfig
from qwen_jax.kernels.platform import target_of
from qwen_jax.model.layers import gated_silu
from qwen_jax.types import Array, LayerParams, Params

_PIECE = 256  # tokens of a row whose widest arrays, [T, 2 F], are computed at a time


class PrepackedLayer(PyTreeNode):
    """A layer's weights, each matrix with its inputs last; those of one input are one matrix."""

    attention_norm: Array  # [D]
    w_qkv: Array  # [(N + 2 K) H, D]
    b_qkv: Array  # [(N + 2 K) H]
    wo: Array  # [D, N H]
    mlp_norm: Array  # [D]
    w_gate_up: Array  # [2 F, D]
    w_down: Array  # [D, F]


class PrepackedParams(PyTreeNode):
    """The weights layer by layer.

    A CPU multiplies a few rows fastest in this order, and XLA:CPU would copy each layer's weights
    out of the stacked ones at every step.
    """

    embed: Array  # [V, D]
    layers: tuple[PrepackedLayer, ...]
    final_norm: Array  # [D]
    head: Array | None  # [V, D]; None: the embedding


@functools.partial(jax.jit, static_argnames="config")
def for_decoding(params: Params, *, config: ModelConfig) -> Params | PrepackedParams:
    """`params` in config.compute_dtype, cast once instead of at every token.

    On one CPU also in the order that decodes fastest (PrepackedParams). Costs a second
    set of weights unless there is nothing to do.
    """
    dtype = jnp.dtype(config.compute_dtype)
    params = jax.tree.map(lambda weight: weight.astype(dtype), params)
    return prepack(params) if target_of(params.embed).platform == "cpu" else params


def prepack(params: Params) -> PrepackedParams:
    """The weights in the order of PrepackedParams."""

    def prepacked(layer: LayerParams) -> PrepackedLayer:
        a, D = layer.attention, layer.mlp_norm.shape[0]
        return PrepackedLayer(
            attention_norm=layer.attention_norm,
            w_qkv=jnp.concatenate([w.reshape(D, -1).T for w in (a.wq, a.wk, a.wv)]),
            b_qkv=jnp.concatenate([b.reshape(-1) for b in (a.bq, a.bk, a.bv)]),
            wo=a.wo.reshape(-1, D).T,
            mlp_norm=layer.mlp_norm,
            w_gate_up=jnp.concatenate([layer.mlp.w_gate.T, layer.mlp.w_up.T]),
            w_down=layer.mlp.w_down.T,
        )

    layers = tuple(
        prepacked(jax.tree.map(lambda weight, i=i: weight[i], params.layers))
        for i in range(params.layers.mlp_norm.shape[0])
    )
    return PrepackedParams(
        params.embed, layers, params.final_norm, None if params.head is None else params.head.T
    )


def prepacked_linear(x_BTD: Array, weight_ED: Array, dtype=None) -> Array:
    """layers.linear with a turned weight. (x W.T would be transposed anew at every step.)"""
    B, T, _ = x_BTD.shape
    weight_ED = weight_ED.astype(x_BTD.dtype)
    if (B, T) == (1, 1) and x_BTD.dtype == jnp.bfloat16:
        # XLA:CPU has no fast product of a single bfloat16 row; of two rows it has one.
        x_BTD = jnp.concatenate([x_BTD, x_BTD], axis=1)
    y = jax.lax.dot_general(
        x_BTD, weight_ED, (((2,), (1,)), ((), ())), preferred_element_type=dtype
    )
    return y[:, :T]


def prepacked_qkv(x_BTD: Array, layer: PrepackedLayer, config: ModelConfig):
    """Queries, keys and values, not rotated yet: [B, T, N, H], [B, T, K, H], [B, T, K, H]."""
    N, K, H = config.num_heads, config.kv_heads, config.head_dim
    y = prepacked_linear(x_BTD, layer.w_qkv)
    y = (y + layer.b_qkv.astype(y.dtype)[None, None]).reshape(*y.shape[:2], N + 2 * K, H)
    return y[:, :, :N], y[:, :, N : N + K], y[:, :, N + K :]


def prepacked_swiglu(x_BTD: Array, layer: PrepackedLayer) -> Array:
    """layers.swiglu."""

    def piece(x):
        gate_BTF, up_BTF = jnp.split(prepacked_linear(x, layer.w_gate_up), 2, axis=-1)
        return prepacked_linear(gated_silu(gate_BTF, up_BTF), layer.w_down)

    T = x_BTD.shape[1]
    return jnp.concatenate([piece(x_BTD[:, t : t + _PIECE]) for t in range(0, T, _PIECE)], axis=1)
