"""The weights as decoding reads them."""

import functools

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.inference.cpu_weights import TurnedParams, turn
from qwen_jax.kernels.platform import target_of
from qwen_jax.types import Params


@functools.partial(jax.jit, static_argnames="config")
def for_decoding(params: Params, *, config: ModelConfig) -> Params | TurnedParams:
    """`params` in config.compute_dtype, cast once instead of at every token.

    On one CPU also in the order that decodes fastest (model.turned). Costs a second
    set of weights unless there is nothing to do.
    """
    dtype = jnp.dtype(config.compute_dtype)
    params = jax.tree.map(lambda weight: weight.astype(dtype), params)
    return turn(params) if target_of(params.embed).platform == "cpu" else params
