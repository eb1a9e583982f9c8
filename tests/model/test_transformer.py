"""Properties of the decoder that hold for any weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError
from qwen_jax.model import spec, transformer
from qwen_jax.model.transformer import default_positions, hidden_states

CONFIG = dataclasses.replace(sizes.TINY, initializer_range=0.2, num_layers=3)
KEY = jax.random.key(0)


forward = jax.jit(transformer.forward, static_argnames=("config", "inference"))
init_params = jax.jit(spec.init_params, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, KEY)


def tokens_of(seed: int, shape) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape, np.int32)


def test_init_params_match_the_declared_shapes_and_initializers(params):
    specs = spec.param_specs(CONFIG)
    for (path, weight), declared in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(specs), strict=True
    ):
        assert weight.shape == declared.shape, path
        wanted = {"zeros": 0.0, "ones": 0.0, "normal": declared.std}[declared.init]
        assert abs(float(np.std(weight)) - wanted) < 0.1 * wanted + 1e-9, path
    assert specs.layers.mlp.w_down.std == pytest.approx(0.2 / np.sqrt(2 * CONFIG.num_layers))


def test_init_params_do_not_depend_on_other_weights(params):
    tied = init_params(dataclasses.replace(CONFIG, tie_embeddings=True), KEY)
    assert tied.head is None
    np.testing.assert_array_equal(tied.layers.mlp.w_up, params.layers.mlp.w_up)


def test_hidden_states_are_causal(params):
    positions = np.arange(12, dtype=np.int32)[None]

    def output_at_5(embed_of_each):
        # The gradient of each position's embedding, with one table entry per position.
        own = dataclasses.replace(params, embed=embed_of_each)
        x = hidden_states(own, positions, positions, config=CONFIG)
        return jnp.sum(jnp.square(x[0, 5]))

    table = np.random.default_rng(1).standard_normal((12, CONFIG.hidden_size), np.float32)
    grad = np.abs(jax.jit(jax.grad(output_at_5))(table)).sum(axis=1)
    assert np.all(grad[:6] > 0) and np.all(grad[6:] == 0)


def test_forward_ignores_packed_neighbors(params):
    a, b, c = (tokens_of(seed, (1, n)) for seed, n in ((1, 5), (2, 6), (3, 6)))
    ids = np.asarray([[1] * 5 + [2] * 6 + [0] * 3], np.int32)
    pad = np.zeros((1, 3), np.int32)
    with_b, with_c = (
        np.asarray(
            forward(params, np.concatenate([a, x, pad], axis=1), config=CONFIG, segment_ids=ids)
        )
        for x in (b, c)
    )
    np.testing.assert_array_equal(with_b[:, :5], with_c[:, :5])
    single = forward(params, b, config=CONFIG)
    np.testing.assert_allclose(with_b[:, 5:11], single, atol=1e-5)


def test_default_positions_restart_with_segments():
    ids = jnp.asarray([[1, 1, 1, 2, 2, 0, 0]], jnp.int32)
    np.testing.assert_array_equal(default_positions(ids, ids), [[0, 1, 2, 0, 1, 0, 1]])


@functools.partial(jax.jit, static_argnums=2)
@jax.grad
def squared_gradient(params, tokens, config):
    return jnp.mean(jnp.square(forward(params, tokens, config=config, inference=False)))


@pytest.mark.parametrize("remat", ["dots", "block"])
def test_forward_remat_does_not_change_gradients(params, remat):
    tokens = tokens_of(5, (2, 16))

    plain, again = (
        jax.device_get(squared_gradient(params, tokens, dataclasses.replace(CONFIG, remat=how)))
        for how in ("none", remat)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6 * float(np.abs(a).max()) + 1e-12)


def test_hidden_states_dropout_depends_only_on_its_key(params):
    config = dataclasses.replace(CONFIG, dropout=0.3)
    tokens, positions = tokens_of(6, (2, 16)), np.tile(np.arange(16, dtype=np.int32)[None], (2, 1))
    run = jax.jit(
        lambda key: hidden_states(params, tokens, positions, config=config, dropout_key=key)
    )
    without = jax.jit(hidden_states, static_argnames="config")
    plain = without(params, tokens, positions, config=config)
    np.testing.assert_array_equal(plain, without(params, tokens, positions, config=CONFIG))
    a, b = np.asarray(run(jax.random.key(1))), np.asarray(run(jax.random.key(2)))
    assert np.abs(a - b).max() > 0.1
    np.testing.assert_array_equal(a, run(jax.random.key(1)))


def test_forward_in_bfloat16_is_close_to_float32(params):
    tokens = tokens_of(7, (2, 16))
    exact, rounded = (
        np.asarray(forward(params, tokens, config=dataclasses.replace(CONFIG, compute_dtype=dtype)))
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == np.float32
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-5 < float(error) < 0.05


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 3}, "num_heads=3 does not divide hidden_size=32"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"compute_dtype": "fp8"}, "compute_dtype='fp8' is unknown"),
        ({"head_size": 7}, "odd"),
    ],
)
def test_model_config_refuses_invalid_settings(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_forward_refuses_tokens_without_a_batch_axis(params):
    with pytest.raises(ConfigError, match="tokens have shape"):
        forward(params, jnp.zeros((4,), jnp.int32), config=CONFIG)


@pytest.mark.parametrize("unroll", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_forward_with_unrolled_layers_is_equal(params, unroll):
    tokens = tokens_of(5, (2, 16))  # a program of the tests above
    wanted, ours = (
        jax.device_get(
            squared_gradient(params, tokens, dataclasses.replace(CONFIG, unroll_layers=n))
        )
        for n in (1, unroll)
    )
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(ours), strict=True
    ):
        scale = float(np.abs(x).max())
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 * scale, err_msg=str(path))
