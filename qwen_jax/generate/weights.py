"""The weights as decoding reads them."""

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.kernels.target import target_of
from qwen_jax.model.cached import split_layers
from qwen_jax.types import Params


def for_decoding(params: Params, config: ModelConfig) -> Params:
    """`params` in config.compute_dtype and, on a CPU, layer by layer.

    Cast once instead of at every token; and XLA:CPU would cut each layer's weights out of the
    stacked ones at every token, a copy that takes longer than multiplying with them. Costs a second
    set of weights unless there is nothing to do.
    """
    dtype = jnp.dtype(config.compute_dtype)
    params = jax.tree.map(lambda weight: weight.astype(dtype), params)
    return split_layers(params) if target_of(params.embed).platform == "cpu" else params
