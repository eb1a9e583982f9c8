"""The decoder with its norms after the residual sums (Vaswani et al. 2017), for training.

B batch, T positions, D model.
"""

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model import rope
from qwen_jax.model.attention import self_attention
from qwen_jax.model.embedding import embed
from qwen_jax.model.layers import rms_norm, swiglu
from qwen_jax.types import Array, Params


def hidden_states(
    params: Params,
    tokens_BT: Array,
    positions_BT: Array,
    *,
    config: ModelConfig,
    segment_ids: Array | None = None,
    dropout_key: Array | None = None,
) -> Array:
    """Returns the last hidden states [B, T, D]; x = norm(x + f(x)) replaces x = x + f(norm(x))."""
    del dropout_key
    table = rope.model_table(positions_BT, config, None)
    x_BTD = embed(tokens_BT, params.embed, dtype=jnp.dtype(config.compute_dtype))

    def block(x_BTD, layer):
        y_BTD = self_attention(
            x_BTD,
            layer.attention,
            config=config,
            table=table,
            window=None,
            query_scale_BT=None,
            segment_ids=segment_ids,
        )
        x_BTD = rms_norm(x_BTD + y_BTD, layer.attention_norm, epsilon=config.norm_epsilon)
        y_BTD = swiglu(x_BTD, layer.mlp)
        x_BTD = rms_norm(x_BTD + y_BTD, layer.mlp_norm, epsilon=config.norm_epsilon)
        return x_BTD, None

    x_BTD, _ = jax.lax.scan(block, x_BTD, params.layers, unroll=config.unroll_layers)
    return rms_norm(x_BTD, params.final_norm, epsilon=config.norm_epsilon)
