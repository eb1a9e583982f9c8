"""Perplexity against its definition, one sequence at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import ContextExtension
from qwen_jax.errors import DataError
from qwen_jax.evaluate.perplexity import perplexity
from qwen_jax.model import transformer
from qwen_jax.model.spec import param_specs
from tests.helpers.weights import initial

CONFIG = dataclasses.replace(
    sizes.TINY, initializer_range=0.3, extension=ContextExtension(windows=(16, 32))
)
forward = jax.jit(transformer.forward, static_argnames="config")
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 201).astype(np.uint16)


@pytest.fixture(scope="module")
def params():
    return initial(param_specs(CONFIG))


@pytest.mark.parametrize("length, batch_tokens", [(40, 80), (40, 1), (200, 80)])
def test_perplexity_scores_every_token_once_given_its_sequence(params, length, batch_tokens):
    scored = []
    ours = perplexity(
        params,
        TOKENS,
        config=CONFIG,
        length=length,
        batch_tokens=batch_tokens,
        progress=scored.append,
    )
    nats = 0.0
    for first in range(0, 200, length):
        sequence = TOKENS[first : first + length + 1].astype(np.int32)
        logits = np.asarray(forward(params, sequence[None, :-1], config=CONFIG)[0], np.float64)
        log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        nats -= np.sum(np.take_along_axis(log_p, sequence[1:, None], axis=1))
    assert ours.tokens == sum(scored) == 200
    assert ours.nats == pytest.approx(nats, rel=1e-5)  # sums of 200 numbers in float32
    assert ours.value == pytest.approx(np.exp(nats / 200), rel=1e-4)


def test_perplexity_rejects_too_few_tokens(params):
    with pytest.raises(DataError, match="201 tokens are too few for a sequence of 201"):
        perplexity(params, TOKENS, config=CONFIG, length=201)
