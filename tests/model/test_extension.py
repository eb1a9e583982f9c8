"""The context extension of a full forward pass: sequences, layers and windows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import ContextExtension
from qwen_jax.kernels import reference
from qwen_jax.model import rope, spec, transformer
from qwen_jax.model.attention import project_out, project_qkv
from qwen_jax.model.embedding import embed
from qwen_jax.model.layers import rms_norm, swiglu, unembed
from qwen_jax.model.transformer import head_matrix, hidden_states
from tests.helpers.weights import initial

PLAIN = dataclasses.replace(sizes.TINY, num_layers=3, initializer_range=0.2)  # trained at 16


def extended(windows, **settings):
    return dataclasses.replace(PLAIN, extension=ContextExtension(windows=windows, **settings))


forward = jax.jit(transformer.forward, static_argnames=("config", "inference"))


@pytest.fixture(scope="module")
def params():
    return initial(spec.param_specs(PLAIN))


def tokens_of(seed: int, shape) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, PLAIN.vocab_size, shape, np.int32)


@functools.partial(jax.jit, static_argnames="config")
def by_definition(params, tokens, config):
    """One sequence, layer by layer: each with its own window, rotary base and LogN factors."""
    L, n = config.context_length, tokens.shape[1]
    positions = jnp.arange(n, dtype=jnp.int32)[None]
    x = embed(tokens, params.embed, dtype=jnp.float32)
    for index, window in enumerate(config.extension.windows):
        layer = jax.tree.map(lambda weight, index=index: weight[index], params.layers)
        seen = min(n, window)
        alpha = max(2.0 ** (np.ceil(np.log2(seen / L)) + 1) - 1, 1.0)
        base = config.rope_base * alpha ** (config.head_dim / (config.head_dim - 2))
        factors = [max(1.0, np.log(min(p + 1, window)) / np.log(L)) for p in range(n)]
        q, k, v = project_qkv(
            rms_norm(x, layer.attention_norm, epsilon=config.norm_epsilon),
            layer.attention,
            table=rope.rotary_table(positions, head_size=config.head_dim, base=base),
            query_scale_BT=jnp.asarray([factors], jnp.float32),
            epsilon=config.norm_epsilon,
        )
        out = reference.attention(
            q, k, v, segment_ids=None, positions=None, window=window, scale=config.head_dim**-0.5
        )
        x = x + project_out(out, layer.attention)
        x = x + swiglu(rms_norm(x, layer.mlp_norm, epsilon=config.norm_epsilon), layer.mlp)
    return unembed(rms_norm(x, params.final_norm, epsilon=config.norm_epsilon), head_matrix(params))


@pytest.mark.parametrize(
    "windows",
    # Within the training length, between it and the sequence's, and beyond.
    [(8, 24, 64), pytest.param((16, 32, 40), marks=pytest.mark.slow)],
)
def test_forward_extends_each_layer_by_its_window(params, windows):
    config, tokens = extended(windows), tokens_of(1, (1, 50))
    np.testing.assert_allclose(
        forward(params, tokens, config=config), by_definition(params, tokens, config), atol=5e-5
    )


def test_forward_with_windows_beyond_the_sequence_equals_full_attention(params):
    tokens = tokens_of(2, (2, 50))
    np.testing.assert_allclose(
        forward(params, tokens, config=extended((50, 64, 2**31 - 1))),
        forward(params, tokens, config=PLAIN),
        atol=1e-5,
    )


def test_forward_with_windows_within_training_length_is_not_extended(params):
    tokens = tokens_of(3, (1, 50))
    ours, unextended = (
        forward(params, tokens, config=extended((16, 12, 8), **settings))
        for settings in ({}, {"dynamic_ntk": False, "logn": False})
    )
    np.testing.assert_allclose(ours, unextended, atol=1e-6)


@pytest.mark.parametrize("windows", [(3, 1, 4), pytest.param((1, 1, 2), marks=pytest.mark.slow)])
def test_hidden_states_depend_only_on_tokens_within_the_windows(params, windows):
    n, query = 24, 20
    positions = np.arange(n, dtype=np.int32)[None]

    def output(embed_of_each):
        own = dataclasses.replace(params, embed=embed_of_each)
        x = hidden_states(
            own,
            positions,
            positions,
            config=extended(windows),
            length_B=np.asarray([n], np.int32),
        )
        return jnp.sum(x[0, query])

    table = np.random.default_rng(1).standard_normal((n, PLAIN.hidden_size), np.float32)
    reached = np.flatnonzero(np.abs(jax.jit(jax.grad(output))(table)).sum(axis=1))
    first = query - sum(window - 1 for window in windows)
    np.testing.assert_array_equal(reached, np.arange(first, query + 1))


@pytest.mark.parametrize("windows, short", [(None, 15), ((16, 24, 40), 30)])
def test_forward_extends_a_short_sequence_independently_of_long_ones(params, windows, short):
    config, tokens = extended(windows), tokens_of(4, (2, 60))
    lengths = np.asarray([[60], [short]])
    ids = np.asarray(np.arange(60) < lengths, np.int32)
    together = np.asarray(forward(params, tokens, config=config, segment_ids=ids))
    for index, (n,) in enumerate(lengths):
        single = forward(params, tokens[index : index + 1, :n], config=config)
        np.testing.assert_allclose(together[index, :n], single[0], atol=5e-5)


def test_forward_without_inference_ignores_the_extension(params):
    tokens = tokens_of(5, (1, 50))

    def program(config):
        return str(
            jax.make_jaxpr(lambda tokens: forward(params, tokens, config=config, inference=False))(
                tokens
            )
        )

    assert program(extended((16, 24, 40))) == program(PLAIN)
