"""Building blocks of the model: RMSNorm, linear, SwiGLU, dropout and unembedding.

B batch, T positions, D model, F ffn, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwen_jax.parallel.sharding import constrain
from qwen_jax.types import Array, MLPParams

MATMUL_OUT = "matmul_out"  # the name of the result of `linear` in remat policies


def rms_norm(x_BTD: Array, scale_D: Array, *, epsilon: float) -> Array:
    """Returns x / rms(x) * scale in the dtype of `x_BTD`, with float32 statistics. Report: 2.3."""
    x32 = x_BTD.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    normed = (x32 * inverse_rms).astype(x_BTD.dtype)
    return normed * jnp.expand_dims(scale_D.astype(x_BTD.dtype), range(x_BTD.ndim - 1))


def linear(x_BTD: Array, weight_DE: Array, dtype=None) -> Array:
    """`matmul` with a named result.

    A remat policy needs the name, because it does not see inside a custom_vjp such as `matmul`.
    """
    return checkpoint_name(matmul(x_BTD, weight_DE, dtype), MATMUL_OUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_BTD: Array, weight_DE: Array, dtype=None) -> Array:
    """Returns x W, with W cast to x's dtype.

    The weight gradient accumulates in float32. The custom backward pass fixes the order of its
    operands, because XLA transposes the left one. That should be the input, not the output
    gradient, which is wider and newly computed. On a CPU, this makes weight gradients two to three
    times as fast.

    Args:
      dtype: dtype of the result; None: x's.
    """
    return _contract(x_BTD, weight_DE.astype(x_BTD.dtype), 2, 0, dtype)


def _contract(a: Array, b: Array, axis_a, axis_b, dtype=None) -> Array:
    axes_a, axes_b = ((axis,) if isinstance(axis, int) else axis for axis in (axis_a, axis_b))
    return jax.lax.dot_general(a, b, ((axes_a, axes_b), ((), ())), preferred_element_type=dtype)


def _matmul_forward(x_BTD, weight_DE, dtype):
    return matmul(x_BTD, weight_DE, dtype), (x_BTD, weight_DE)


def _matmul_backward(dtype, residuals, dy_BTE):
    del dtype
    x_BTD, weight_DE = residuals
    dy_BTE = dy_BTE.astype(x_BTD.dtype)
    dx_BTD = _contract(dy_BTE, weight_DE.astype(dy_BTE.dtype), 2, 1)
    dw_DE = _contract(x_BTD, dy_BTE, (0, 1), (0, 1), jnp.float32)
    return dx_BTD, dw_DE.astype(weight_DE.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def swiglu(x_BTD: Array, params: MLPParams, *, matmul=linear) -> Array:
    """Returns down(up(x) * silu(gate(x))). Report: 2.3.

    Args:
      params: weights of one layer, without the layer axis.
      matmul: function that multiplies by a weight: `linear` or lora.adapted_linear.
    """
    gate_BTF, up_BTF = matmul(x_BTD, params.w_gate), matmul(x_BTD, params.w_up)
    hidden_BTF = constrain(gated_silu(gate_BTF, up_BTF), "batch", "length", "act_ffn")
    return matmul(hidden_BTF, params.w_down)


@jax.custom_vjp
def gated_silu(gate: Array, up: Array) -> Array:
    """Returns up * silu(gate), computed in float32, in the dtype of `gate`.

    The custom backward pass saves only the two inputs. Automatic differentiation would save two
    more of a layer's widest arrays.
    """
    gate32 = gate.astype(jnp.float32)
    return (up.astype(jnp.float32) * gate32 * jax.nn.sigmoid(gate32)).astype(gate.dtype)


def _gated_silu_backward(residuals, dy):
    gate, up, dy = (x.astype(jnp.float32) for x in (*residuals, dy))
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    d_gate = dy * up * (sigmoid + silu * (1.0 - sigmoid))
    return d_gate.astype(residuals[0].dtype), (dy * silu).astype(residuals[1].dtype)


gated_silu.defvjp(lambda gate, up: (gated_silu(gate, up), (gate, up)), _gated_silu_backward)


def dropout(x: Array, *, rate: float, key: Array | None) -> Array:
    """Zeroes elements with probability `rate` and rescales the rest. Without a key, returns `x`."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def unembed(x_BTD: Array, head_DV: Array, *, matmul=linear) -> Array:
    """Returns logits, float32 [B, T, V], accumulated in float32 for any input dtype."""
    return constrain(matmul(x_BTD, head_DV, jnp.float32), "batch", "length", "act_vocab")
