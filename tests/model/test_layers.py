"""RMSNorm against NumPy; the custom backward passes against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.model.layers import gated_silu, linear, rms_norm


def sample(seed, *shape):
    return jnp.asarray(2 * np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize("dtype, rounding", [("float32", 2.0**-21), ("bfloat16", 2.0**-6)])
def test_rms_norm_equals_numpy_in_float64(dtype, rounding):
    x, scale = sample(0, 2, 5, 64).astype(dtype), sample(1, 64)
    normed = rms_norm(x, scale, epsilon=1e-2)
    x64, scale64 = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    wanted = x64 / np.sqrt(np.mean(x64**2, axis=-1, keepdims=True) + 1e-2) * scale64
    assert normed.dtype == x.dtype
    # Three roundings: of the normed values, the scale, and their product.
    np.testing.assert_allclose(normed.astype(jnp.float32), wanted, rtol=rounding)


def test_gated_silu_equals_automatic_differentiation():
    gate, up, dy = sample(0, 3, 64), sample(1, 3, 64), sample(2, 3, 64)
    out, backward = jax.vjp(gated_silu, gate, up)
    wanted, wanted_backward = jax.vjp(lambda gate, up: up * jax.nn.silu(gate), gate, up)
    np.testing.assert_allclose(out, wanted, rtol=1e-6)
    for ours, theirs in zip(backward(dy), wanted_backward(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # a few ulps of 10


def test_gated_silu_rounds_once():
    gate, up = sample(0, 4096).astype(jnp.bfloat16), sample(1, 4096).astype(jnp.bfloat16)
    exact = (
        np.asarray(up, np.float64)
        * np.asarray(gate, np.float64)
        / (1 + np.exp(-np.asarray(gate, np.float64)))
    )
    error = np.abs(np.asarray(gated_silu(gate, up), np.float64) - exact)
    assert gated_silu(gate, up).dtype == jnp.bfloat16
    assert (error <= 2.0**-8 * np.abs(exact)).all()  # half an ulp of bfloat16, and rounding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_equals_automatic_differentiation(dtype):
    x, w, dy = (
        sample(0, 2, 5, 16).astype(dtype),
        sample(1, 16, 24),
        sample(2, 2, 5, 24).astype(dtype),
    )
    out, backward = jax.vjp(linear, x, w)
    wanted, wanted_backward = jax.vjp(
        lambda x, w: jnp.matmul(x.astype(jnp.float32), w.astype(dtype).astype(jnp.float32)), x, w
    )
    rounding = 1e-5 if dtype == "float32" else 2.0**-7
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, rtol=rounding, atol=rounding)
    dx, dw = backward(dy)
    wanted_dx, wanted_dw = wanted_backward(dy.astype(jnp.float32))
    assert (dx.dtype, dw.dtype) == (x.dtype, w.dtype)
    for ours, theirs in ((dx, wanted_dx), (dw, wanted_dw)):
        scale = float(jnp.abs(theirs.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            ours.astype(jnp.float32),
            theirs.astype(jnp.float32),
            rtol=rounding,
            atol=rounding * scale,
        )
