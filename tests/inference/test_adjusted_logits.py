"""logit_bias, presence_penalty and frequency_penalty, by OpenAI's formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.inference import logits as filters
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.model.spec import init_params
from qwen_jax.model.transformer import forward

CONFIG = dataclasses.replace(sizes.TINY, context_length=32, vocab_size=256, num_layers=1)
SHAPE = dict(max_num_seqs=4, max_model_len=128, prefill_chunk=16, decode_steps=4)
PROMPT = tuple(np.random.default_rng(3).integers(0, 256, 6).tolist())
full_forward = jax.jit(forward, static_argnames="config")


@pytest.fixture(scope="module")
def params():
    wide = dataclasses.replace(CONFIG, initializer_range=0.3)
    return jax.jit(init_params, static_argnums=0)(wide, jax.random.key(3))


def greedy(params, count, *, presence=0.0, frequency=0.0, bias=None):
    """Decodes without a cache."""
    tokens = list(PROMPT)
    for _ in range(count):
        rows, ids = np.zeros((2, 1, 128), np.int32)
        rows[0, : len(tokens)], ids[0, : len(tokens)] = tokens, 1
        found = full_forward(params, rows, config=CONFIG, segment_ids=ids)
        logits = np.array(found[0, len(tokens) - 1])
        for token, value in (bias or {}).items():
            logits[token] += value
        counts = np.bincount(tokens[len(PROMPT) :], minlength=256)
        tokens.append(int(np.argmax(logits - frequency * counts - presence * (counts > 0))))
    return tuple(tokens[len(PROMPT) :])


def test_penalties_and_bias_equal_their_definition(params):
    plain = greedy(params, 24)
    common = max(plain, key=plain.count)
    cases = [
        {},
        {"presence": 1.5},
        {"frequency": 0.8},
        {"frequency": -2.0, "presence": 1.0},
        {"bias": {common: -100.0, 7: 1.5}},
    ]
    expected = [greedy(params, 24, **case) for case in cases]
    assert len(set(expected)) == len(cases)
    requests = [
        Request(
            PROMPT,
            SamplingParams(
                24,
                presence_penalty=case.get("presence", 0.0),
                frequency_penalty=case.get("frequency", 0.0),
                logit_bias=case.get("bias", {}),
            ),
        )
        for case in cases
    ]
    engine = Engine(params, CONFIG, **SHAPE)
    # Twice: a slot does not remember the settings or the counts of its last request.
    for order in (requests, requests[::-1]):
        found = {
            one.sampling: done.tokens for one, done in zip(order, engine.run(order), strict=True)
        }
        assert [found[one.sampling] for one in requests] == expected


def test_allow_and_add_bias_change_only_what_they_name():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 70)).astype(np.float32)
    allowed = rng.integers(0, 2, (3, 96)).astype(bool)
    words = np.packbits(allowed, axis=1, bitorder="little").view(np.uint32)
    found = np.asarray(filters.allow(logits, words))
    np.testing.assert_array_equal(found, np.where(allowed[:, :70], logits, -np.inf))
    everything = np.full((3, 3), 0xFFFFFFFF, np.uint32)
    np.testing.assert_array_equal(np.asarray(filters.allow(logits, everything)), logits)
    ids = np.full((3, 5), 2**31 - 1, np.int32)
    ids[1, :2], values = [3, 69], np.zeros((3, 5), np.float32)
    values[1, :2] = [2.5, -100]
    found, expected = np.asarray(filters.add_bias(jnp.asarray(logits), ids, values)), logits.copy()
    expected[1, [3, 69]] += [2.5, -100]
    np.testing.assert_array_equal(found, expected)
