"""Choices of report 2.3, undone: functions that replace those of the model while it is traced.

They are not settings of ModelConfig: no model that we train or read has them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.ablations.post_norm import hidden_states
from qwen_jax.model.layers import linear
from qwen_jax.types import Array, MLPParams

_RESIDUAL = 0.27  # 1 / sqrt(2 L) with 7 layers: what writes to the residual stream starts smaller


def layer_norm(x_BTD: Array, scale_D: Array, *, epsilon: float) -> Array:
    """LayerNorm with the parameters of RMSNorm: the mean is subtracted, without a bias."""
    x32 = x_BTD.astype(jnp.float32)
    centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + epsilon)
    normed = (centered * inverse).astype(x_BTD.dtype)
    return normed * scale_D.astype(x_BTD.dtype)[None, None]


def gelu_mlp(x_BTD: Array, params: MLPParams, *, matmul: Callable[..., Array] = linear) -> Array:
    """An FFN with GELU instead of SwiGLU, of equal parameters: 1.5 times as wide, not gated.

    The up projection [D, 1.5 F] is the gate and half of w_up; the down projection [1.5 F, D] is
    w_down and the other half, transposed.
    """
    half = params.w_up.shape[1] // 2
    up = jnp.concatenate([params.w_gate, params.w_up[:, :half]], axis=1)
    down = jnp.concatenate([params.w_down, _RESIDUAL * params.w_up[:, half:].T], axis=0)
    return matmul(jax.nn.gelu(matmul(x_BTD, up)), down)


def half_precision_table(
    positions_BT: Array, config: Any, alpha_B: Array | None
) -> tuple[Array, Array]:
    """The rotary table with inverse frequencies and angles in bfloat16."""
    del alpha_B  # only at inference beyond the training length
    H = config.head_dim
    exponents = jnp.arange(0, H, 2, dtype=jnp.float32) / H
    frequencies = (config.rope_base**-exponents).astype(jnp.bfloat16)
    angles = positions_BT[..., None].astype(jnp.bfloat16) * frequencies
    return jnp.cos(angles).astype(jnp.float32), jnp.sin(angles).astype(jnp.float32)


# Choice -> (module and name of each replaced function, its replacement).
_REPLACED: dict[str, dict[str, Callable[..., Any]]] = {
    "LayerNorm": {"qwen_jax.model.transformer.rms_norm": layer_norm},
    "GELU": {"qwen_jax.model.transformer.swiglu": gelu_mlp},
    "bfloat16 frequencies": {"qwen_jax.model.rope.model_table": half_precision_table},
    "post-norm": {"qwen_jax.train.language_model.hidden_states": hidden_states},
}
CHOICES = tuple(_REPLACED)


@contextlib.contextmanager
def undone(choice: str | None) -> Iterator[None]:
    """Models that are traced inside have the choice undone; None: nothing is.

    The caller drops what was traced before (learner.forget).
    """
    with contextlib.ExitStack() as stack:
        for name, function in _REPLACED[choice].items() if choice else ():
            stack.enter_context(mock.patch(name, function))
        yield
