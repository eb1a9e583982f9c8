"""Rotary embedding, dynamic NTK and LogN against their formulas in plain Python."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import ContextExtension
from qwen_jax.model import rope


def test_rotate_equals_complex_multiplication():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 3, 8)).astype(np.float32)
    positions = jnp.asarray(rng.integers(0, 5000, (2, 9)), jnp.int32)
    rotated = rope.rotate(jnp.asarray(x), rope.rotary_table(positions, head_size=8, base=10000.0))
    inverse = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    angle = np.asarray(positions, np.float64)[:, :, None, None] * inverse
    z = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
    np.testing.assert_allclose(rotated, np.concatenate([z.real, z.imag], -1), atol=2e-3)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 64, 65, 100, 128, 129, 1000, 32 * 1024])
def test_ntk_alpha_equals_the_formula(length):
    exact = max(1, 2 ** math.ceil(math.log2(length / 32) + 1) - 1)
    assert float(rope.ntk_alpha(jnp.asarray([length], jnp.int32), 32)[0]) == exact


def test_rotary_table_scales_the_base_per_sequence():
    positions = jnp.tile(jnp.arange(6, dtype=jnp.int32)[None], (2, 1))
    alpha = jnp.asarray([1.0, 7.0], jnp.float32)
    cos, _ = rope.rotary_table(positions, head_size=16, base=10000.0, alpha_B=alpha)
    plain, _ = rope.rotary_table(positions, head_size=16, base=10000.0)
    scaled, _ = rope.rotary_table(positions, head_size=16, base=10000.0 * 7 ** (16 / 14))
    np.testing.assert_allclose(cos[0], plain[0], atol=1e-6)
    np.testing.assert_allclose(cos[1], scaled[1], atol=1e-6)


def test_logn_scale_is_one_up_to_the_training_length():
    positions = jnp.asarray([[0, 5, 31, 32, 99]], jnp.int32)
    wanted = [1, 1, 1, math.log(33) / math.log(32), math.log(100) / math.log(32)]
    np.testing.assert_allclose(rope.logn_scale(positions, 32)[0], wanted, rtol=1e-6)


EXTENDED = dataclasses.replace(
    sizes.TINY,
    num_layers=3,
    context_length=32,
    extension=ContextExtension(windows=(32, 64, 1 << 20)),
)


@pytest.mark.parametrize(
    "window, alpha, factor",
    [
        (None, [1, 3, 15], math.log(200) / math.log(32)),
        (32, [1, 1, 1], 1.0),  # within the training length: no extension
        (64, [1, 3, 3], math.log(64) / math.log(32)),
        (1 << 20, [1, 3, 15], math.log(200) / math.log(32)),
    ],
)
def test_layer_extension_follows_the_window(window, alpha, factor):
    lengths = jnp.asarray([20, 40, 200], jnp.int32)
    positions = jnp.asarray([[0, 31, 199]], jnp.int32)
    traced = window if window is None else jnp.asarray(window, jnp.int32)
    ours = jax.jit(lambda w: rope.layer_extension(lengths, positions, w, EXTENDED))(traced)
    np.testing.assert_array_equal(ours[0], alpha)
    np.testing.assert_allclose(ours[1], [[1, 1, factor]], rtol=1e-6)


def test_layer_extension_omits_disabled_factors():
    off = dataclasses.replace(EXTENDED, extension=ContextExtension(dynamic_ntk=False, logn=False))
    lengths, positions = jnp.asarray([200], jnp.int32), jnp.asarray([[199]], jnp.int32)
    assert rope.layer_extension(lengths, positions, None, off) == (None, None)
    assert rope.layer_windows(off) is None
    np.testing.assert_array_equal(rope.layer_windows(EXTENDED), EXTENDED.extension.windows)
