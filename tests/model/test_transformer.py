"""Properties of the decoder that hold for any weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.errors import ConfigError
from qwen_jax.model import spec
from qwen_jax.model.transformer import default_positions, forward, hidden_states

CONFIG = dataclasses.replace(sizes.TINY, initializer_range=0.2)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    return spec.init_params(CONFIG, KEY)


def tokens_of(seed: int, shape) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.vocab_size, jnp.int32)


def test_init_params_match_the_declared_shapes_and_initializers(params):
    specs = spec.param_specs(CONFIG)
    for (path, weight), declared in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(specs), strict=True
    ):
        assert weight.shape == declared.shape, path
        wanted = {"zeros": 0.0, "ones": 0.0, "normal": declared.std}[declared.init]
        assert abs(float(jnp.std(weight)) - wanted) < 0.1 * wanted + 1e-9, path
    assert specs.layers.mlp.w_down.std == pytest.approx(0.2 / np.sqrt(2 * CONFIG.num_layers))


def test_init_params_do_not_depend_on_other_weights(params):
    tied = spec.init_params(dataclasses.replace(CONFIG, tie_embeddings=True), KEY)
    assert tied.head is None
    np.testing.assert_array_equal(tied.layers.mlp.w_up, params.layers.mlp.w_up)


def test_hidden_states_are_causal(params):
    positions = jnp.arange(12, dtype=jnp.int32)[None]

    def output_at_5(embed_of_each):
        # The gradient of each position's embedding, with one table entry per position.
        own = dataclasses.replace(params, embed=embed_of_each)
        x = hidden_states(own, positions, positions, config=CONFIG)
        return jnp.sum(jnp.square(x[0, 5]))

    table = jax.random.normal(jax.random.key(1), (12, CONFIG.hidden_size))
    grad = jnp.abs(jax.grad(output_at_5)(table)).sum(axis=1)
    assert np.all(grad[:6] > 0) and np.all(grad[6:] == 0)


def test_forward_ignores_packed_neighbors(params):
    a, b, c = tokens_of(1, (1, 5)), tokens_of(2, (1, 6)), tokens_of(3, (1, 6))
    ids = jnp.asarray([[1] * 5 + [2] * 6 + [0] * 3], jnp.int32)
    pad = jnp.zeros((1, 3), jnp.int32)
    with_b = forward(params, jnp.concatenate([a, b, pad], axis=1), config=CONFIG, segment_ids=ids)
    with_c = forward(params, jnp.concatenate([a, c, pad], axis=1), config=CONFIG, segment_ids=ids)
    np.testing.assert_array_equal(with_b[:, :5], with_c[:, :5])
    single = forward(params, b, config=CONFIG)
    np.testing.assert_allclose(with_b[:, 5:11], single, atol=1e-5)


def test_default_positions_restart_with_segments():
    ids = jnp.asarray([[1, 1, 1, 2, 2, 0, 0]], jnp.int32)
    np.testing.assert_array_equal(default_positions(ids, ids), [[0, 1, 2, 0, 1, 0, 1]])


@pytest.mark.parametrize("remat", ["dots", "block"])
def test_forward_remat_does_not_change_gradients(params, remat):
    tokens = tokens_of(5, (2, 16))

    def loss(params, config):
        return jnp.mean(jnp.square(forward(params, tokens, config=config, inference=False)))

    plain = jax.jit(jax.grad(loss), static_argnums=1)(params, CONFIG)
    config = dataclasses.replace(CONFIG, remat=remat)
    again = jax.jit(jax.grad(loss), static_argnums=1)(params, config)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6 * float(jnp.abs(a).max()) + 1e-12)


def test_hidden_states_dropout_depends_only_on_its_key(params):
    config = dataclasses.replace(CONFIG, dropout=0.3)
    tokens, positions = (
        tokens_of(6, (2, 16)),
        jnp.tile(jnp.arange(16, dtype=jnp.int32)[None], (2, 1)),
    )
    run = jax.jit(
        lambda key: hidden_states(params, tokens, positions, config=config, dropout_key=key)
    )
    plain = hidden_states(params, tokens, positions, config=config)
    np.testing.assert_array_equal(plain, hidden_states(params, tokens, positions, config=CONFIG))
    a, b = run(jax.random.key(1)), run(jax.random.key(2))
    assert np.abs(a - b).max() > 0.1
    np.testing.assert_array_equal(a, run(jax.random.key(1)))


def test_forward_in_bfloat16_is_close_to_float32(params):
    tokens = tokens_of(7, (2, 16))
    exact = forward(params, tokens, config=CONFIG)
    rounded = forward(params, tokens, config=dataclasses.replace(CONFIG, compute_dtype="bfloat16"))
    assert rounded.dtype == jnp.float32
    error = jnp.abs(exact - rounded).max() / jnp.abs(exact).max()
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


@pytest.mark.parametrize("unroll", [2, 3])
def test_forward_with_unrolled_layers_is_equal(unroll):
    config = dataclasses.replace(CONFIG, num_layers=3)
    params, tokens = spec.init_params(config, KEY), tokens_of(7, (2, 9))

    def loss(params, unroll):
        own = dataclasses.replace(config, unroll_layers=unroll)
        return jnp.sum(jnp.square(forward(params, tokens, config=own)))

    wanted, ours = (jax.jit(jax.grad(loss), static_argnums=1)(params, n) for n in (1, unroll))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(ours), strict=True
    ):
        scale = float(jnp.abs(x).max())
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 * scale, err_msg=str(path))
