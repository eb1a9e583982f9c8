"""Rotary embedding, dynamic NTK and LogN against their formulas in plain Python."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, RopeScaling
from qwen_jax.config import ContextExtension
from qwen_jax.errors import ConfigError
from qwen_jax.model import rope
from qwen_jax.model.rope_scaling import attention_factor, frequency_factors


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


# Original length, other settings; the last has both bounds at one frequency.
YARN = [
    (32768, {}),
    (4096, {"factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}),
    (64, {"attention_factor": 1.25}),
    (2048, {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8}),
    (8, {"factor": 0.5, "beta_fast": 1e-3, "beta_slow": 1e-3}),
]


def yarn(original, changes):
    return RopeScaling("yarn", **{"factor": 4.0, "original_length": original} | changes)


def test_frequency_factors_of_yarn_keep_high_frequencies_and_divide_low_ones():
    # 128 dimensions, base 10^6 and 32768 tokens, as for Qwen2.5 and Qwen3.
    factors = frequency_factors(yarn(32768, {}), head_size=128, base=1e6)
    turns = 32768 * 1e6 ** (-np.arange(64) / 64) / (2 * math.pi)
    assert np.all(factors[turns > 40] == 1) and np.all(factors[turns < 0.8] == 0.25)
    between = factors[(turns < 28) & (turns > 1.2)]
    assert np.all(np.diff(between) < 0) and between.min() > 0.25 and between.max() < 1
    assert attention_factor(yarn(32768, {})) == pytest.approx(0.1 * math.log(4) + 1)
    linear = RopeScaling("linear", 4.0)
    assert np.all(frequency_factors(linear, head_size=8, base=1e4) == 0.25)
    assert attention_factor(linear) == 1.0


@pytest.mark.parametrize("original, changes", YARN)
def test_frequency_factors_equal_those_of_transformers(original, changes):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    scaling = yarn(original, changes)
    names = {"original_length": "original_max_position_embeddings", "kind": "rope_type"}
    parameters = {
        names.get(name, name): value for name, value in dataclasses.asdict(scaling).items()
    }
    config = transformers.Qwen3Config(
        head_dim=128,
        max_position_embeddings=original,
        rope_parameters=parameters | {"rope_theta": 1e6},
    )
    compute = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"]
    inverse, size = compute(config, torch.device("cpu"))
    plain = 1e6 ** (-np.arange(64) / 64)
    ours = plain * frequency_factors(scaling, head_size=128, base=1e6)
    np.testing.assert_allclose(ours, inverse.numpy(), rtol=1e-6)
    assert attention_factor(scaling) == pytest.approx(size)


def test_rotary_table_scales_angles_and_sizes():
    positions = jnp.arange(6, dtype=jnp.int32)[None] * 4
    scaling = RopeScaling("linear", 4.0)
    cos, sin = rope.rotary_table(positions, head_size=16, base=1e4, scaling=scaling)
    plain = rope.rotary_table(positions // 4, head_size=16, base=1e4)
    np.testing.assert_allclose((cos, sin), plain, atol=1e-6)
    scaled = rope.rotary_table(positions, head_size=16, base=1e4, scaling=yarn(8, {}))
    size = np.square(scaled[0]) + np.square(scaled[1])
    np.testing.assert_allclose(size, (0.1 * math.log(4) + 1) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    "make, where",
    [
        (lambda: RopeScaling("yarn", 4.0), "original_length"),
        (lambda: yarn(64, {"beta_fast": 1.0, "beta_slow": 2.0}), "beta_fast"),
        (lambda: AttentionVariant(sliding_window=4), "sliding_layers"),
        (lambda: AttentionVariant(sliding_layers=(0,)), "sliding_window"),
        (lambda: AttentionVariant(sliding_window=4, sliding_layers=(1, 1)), "sliding_layers"),
        (lambda: model(sliding_window=4, sliding_layers=(2,)), "sliding_layers"),
        (lambda: model(rope_scaling=yarn(16, {})), "model.extension.dynamic_ntk"),
    ],
)
def test_settings_of_attention_are_refused_with_the_flag_to_change(make, where):
    with pytest.raises(ConfigError) as error:
        make()
    assert where in error.value.where and "model." in error.value.where


def model(**variant):
    return dataclasses.replace(sizes.TINY, variant=AttentionVariant(**variant))


def test_layer_windows_combine_the_sliding_window_with_the_extension():
    config = dataclasses.replace(
        model(sliding_window=5, sliding_layers=(0,)), extension=ContextExtension(windows=(8, 3))
    )
    assert config.layer_windows(inference=False) == (5, None)
    assert config.layer_windows(inference=True) == (5, 3)
    np.testing.assert_array_equal(rope.layer_windows(config, inference=False), [5, 2**31 - 1])
    assert sizes.TINY.layer_windows(inference=True) is None
