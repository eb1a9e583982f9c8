"""Weights for decoding: cast once, and on a CPU prepacked in the layout that decodes fastest.

B batch, T positions, V vocabulary, D model, N heads, K key-value heads, H head size, F ffn,
E outputs of a matrix.
"""

import functools

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from qwen_jax.config import ModelConfig
from qwen_jax.kernels.platform import target_of
from qwen_jax.model.attention import normalized_heads
from qwen_jax.model.layers import gated_silu
from qwen_jax.types import Array, LayerParams, Params

_TOKEN_CHUNK = 256  # tokens per chunk of the MLP, which limits its widest arrays, [T, 2 F]


class PrepackedLayer(PyTreeNode):
    """A layer's weights. The input axis is last; matrices with equal inputs are concatenated."""

    attention_norm: Array  # [D]
    w_qkv: Array  # [(N + 2 K) H, D]
    b_qkv: Array | None  # [(N + 2 K) H]
    q_norm: Array | None  # [H]
    k_norm: Array | None  # [H]
    wo: Array  # [D, N H]
    mlp_norm: Array  # [D]
    w_gate_up: Array  # [2 F, D]
    w_down: Array  # [D, F]


class PrepackedParams(PyTreeNode):
    """The weights, with separate arrays for each layer.

    A CPU multiplies a few rows fastest in this layout. With stacked weights, XLA:CPU would copy
    each layer's weights at every step.
    """

    embed: Array  # [V, D]
    layers: tuple[PrepackedLayer, ...]
    final_norm: Array  # [D]
    head: Array | None  # [V, D]; None: tied to the embedding


@functools.partial(jax.jit, static_argnames="config")
def for_decoding(params: Params, *, config: ModelConfig) -> Params | PrepackedParams:
    """Returns `params` in config.compute_dtype, cast once instead of for every token.

    On a single CPU they are also prepacked (PrepackedParams). The result is a second copy of the
    weights unless nothing changes.
    """
    dtype = jnp.dtype(config.compute_dtype)
    params = jax.tree.map(lambda weight: weight.astype(dtype), params)
    return prepack(params) if target_of(params.embed).platform == "cpu" else params


def prepack(params: Params) -> PrepackedParams:
    """Returns the weights in the layout of PrepackedParams."""

    def prepacked(layer: LayerParams) -> PrepackedLayer:
        a, D = layer.attention, layer.mlp_norm.shape[0]
        biases = [b for b in (a.bq, a.bk, a.bv) if b is not None]
        return PrepackedLayer(
            attention_norm=layer.attention_norm,
            w_qkv=jnp.concatenate([w.reshape(D, -1).T for w in (a.wq, a.wk, a.wv)]),
            b_qkv=None if not biases else jnp.concatenate([b.reshape(-1) for b in biases]),
            q_norm=a.q_norm,
            k_norm=a.k_norm,
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
    """Applies layers.linear with a prepacked weight; x W.T would transpose it at every step."""
    B, T, _ = x_BTD.shape
    weight_ED = weight_ED.astype(x_BTD.dtype)
    if (B, T) == (1, 1) and x_BTD.dtype == jnp.bfloat16:
        # XLA:CPU has a fast bfloat16 matmul for two rows, but not for one.
        x_BTD = jnp.concatenate([x_BTD, x_BTD], axis=1)
    y = jax.lax.dot_general(
        x_BTD, weight_ED, (((2,), (1,)), ((), ())), preferred_element_type=dtype
    )
    return y[:, :T]


def prepacked_qkv(x_BTD: Array, layer: PrepackedLayer, config: ModelConfig):
    """Returns unrotated queries, keys and values: [B, T, N, H], [B, T, K, H], [B, T, K, H].

    QK-norm, if the model has it, is applied.
    """
    N, K, H = config.num_heads, config.kv_heads, config.head_dim
    y = prepacked_linear(x_BTD, layer.w_qkv)
    if layer.b_qkv is not None:
        y = y + layer.b_qkv.astype(y.dtype)[None, None]
    y = y.reshape(*y.shape[:2], N + 2 * K, H)
    q = normalized_heads(y[:, :, :N], layer.q_norm, config.norm_epsilon)
    k = normalized_heads(y[:, :, N : N + K], layer.k_norm, config.norm_epsilon)
    return q, k, y[:, :, N + K :]


def prepacked_swiglu(x_BTD: Array, layer: PrepackedLayer) -> Array:
    """Applies layers.swiglu with prepacked weights."""

    def chunk(x):
        gate_BTF, up_BTF = jnp.split(prepacked_linear(x, layer.w_gate_up), 2, axis=-1)
        return prepacked_linear(gated_silu(gate_BTF, up_BTF), layer.w_down)

    T = x_BTD.shape[1]
    chunks = [chunk(x_BTD[:, t : t + _TOKEN_CHUNK]) for t in range(0, T, _TOKEN_CHUNK)]
    return jnp.concatenate(chunks, axis=1)
