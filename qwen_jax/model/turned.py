"""The weights in the order in which a CPU decodes fastest.

V vocabulary, D model, N heads, K key-value heads, H head size, F ffn, E outputs of a matrix.
"""

import flax.struct
import jax
import jax.numpy as jnp

from qwen_jax.types import Array, LayerParams, Params


@flax.struct.dataclass
class TurnedParams:
    """The weights layer by layer, each matrix with its inputs last ([E, D], heads flattened).

    A CPU multiplies a few rows fastest in this order, and XLA:CPU would copy each layer's weights
    out of the stacked ones at every step.
    """

    embed: Array  # [V, D]
    layers: tuple[LayerParams, ...]  # wq [N H, D], wk and wv [K H, D], wo [D, N H], w_up [F, D] ...
    final_norm: Array  # [D]
    head: Array | None  # [V, D]; None: the embedding


def turn(params: Params) -> TurnedParams:
    """The weights in the order of TurnedParams."""
    def turned(layer: LayerParams) -> LayerParams:
        a, D = layer.attention, layer.mlp_norm.shape[0]
        return layer.replace(
            attention=a.replace(wq=a.wq.reshape(D, -1).T, wk=a.wk.reshape(D, -1).T,
                                wv=a.wv.reshape(D, -1).T, wo=a.wo.reshape(-1, D).T),
            mlp=jax.tree.map(jnp.transpose, layer.mlp))

    layers = tuple(turned(jax.tree.map(lambda weight, i=i: weight[i], params.layers))
                   for i in range(params.layers.mlp_norm.shape[0]))
    return TurnedParams(params.embed, layers, params.final_norm,
                        None if params.head is None else params.head.T)


def turned_linear(x_BTD: Array, weight_ED: Array, dtype=None) -> Array:
    """layers.linear with a turned weight. (x W.T would be transposed anew at every step.)"""
    B, T, _ = x_BTD.shape
    weight_ED = weight_ED.astype(x_BTD.dtype)
    if (B, T) == (1, 1) and x_BTD.dtype == jnp.bfloat16:
        # XLA:CPU has no fast product of a single bfloat16 row; of two rows it has one.
        x_BTD = jnp.concatenate([x_BTD, x_BTD], axis=1)
    y = jax.lax.dot_general(x_BTD, weight_ED, (((2,), (1,)), ((), ())),
                            preferred_element_type=dtype)
    return y[:, :T]
