"""The reward model's objective against values by hand, and its agreement with preferences."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.align.preference_report import Agreement, measure, table
from qwen_jax.align.preference_report import _margins as compiled_margins
from qwen_jax.align.reward_model import make_objective
from qwen_jax.data.batches import pad_batch, stack_trees
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import Pair, PairRows
from qwen_jax.model.spec import param_specs
from qwen_jax.model.transformer import hidden_states
from qwen_jax.model.value_head import from_language_model, scores, scoring_specs
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.weights import initial

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
MODEL = dataclasses.replace(sizes.TINY, vocab_size=464, context_length=96)
PAIRS = [
    Pair((("user", "hi"),), "yes", "not at all", "a"),
    Pair((("user", "a much longer question"),), "a longer answer", "no", "b"),
    Pair((("user", "?"),), "1", "2", "c"),
]
OBJECTIVE = jax.jit(make_objective(MODEL))
compiled_scores = jax.jit(scores, static_argnames="config")


@pytest.fixture(scope="module")
def params():
    return initial(scoring_specs(MODEL))


@pytest.fixture(scope="module")
def rows():
    return PairRows(PAIRS, TOKENIZER, context_length=96, counts=Counts(kept=3))


def test_margins_read_the_reward_at_the_end_token_and_ignore_padding(params, rows):
    batch = stack_trees([rows[i] for i in range(3)])
    found = compiled_margins(params, batch, config=MODEL)
    n = int(batch.end[2, 0]) + 1  # the last pair without padding: its answers have equal lengths
    unpadded = batch.tokens[2, :, :n]
    assert unpadded[:, -1].tolist() == [TOKENIZER.im_end] * 2
    ones = np.ones_like(unpadded)
    by_hand = np.asarray(compiled_scores(params, unpadded, ones, config=MODEL))[:, -1]
    # Sums of 32 terms in a different order: a few units in the last place of numbers near 1.
    assert float(found[2]) == pytest.approx(float(by_hand[0] - by_hand[1]), abs=1e-5)
    padded = np.asarray(
        compiled_scores(
            params, batch.tokens.reshape(6, 96), batch.segment_ids.reshape(6, 96), config=MODEL
        )
    )
    ends = [
        float(scores_T[end]) for scores_T, end in zip(padded, batch.end.reshape(6), strict=True)
    ]
    np.testing.assert_allclose(found, np.subtract(ends[::2], ends[1::2]), atol=1e-5)
    junk = batch.replace(tokens=np.where(batch.segment_ids > 0, batch.tokens, 77))
    np.testing.assert_array_equal(compiled_margins(params, junk, config=MODEL), found)


def test_make_objective_is_minus_log_sigmoid_of_the_margin(params, rows):
    batch = stack_trees([rows[i] for i in range(3)])
    m = np.asarray(compiled_margins(params, batch, config=MODEL), np.float64)
    sums = OBJECTIVE(params, batch, None)
    assert float(sums.loss_sum) == pytest.approx(sum(math.log1p(math.exp(-x)) for x in m), rel=1e-5)
    assert float(sums.weight_sum) == 3
    assert float(sums.extras["accuracy"]) == (m > 0).sum()
    assert float(sums.extras["margin"]) == pytest.approx(m.sum(), abs=1e-5)


def test_make_objective_counts_a_tie_half_with_loss_log_2(params, rows):
    zero = params.replace(score=np.zeros_like(params.score))
    sums = OBJECTIVE(zero, stack_trees([rows[i] for i in range(3)]), None)
    assert float(sums.extras["accuracy"]) == 1.5
    assert float(sums.loss_sum) == pytest.approx(3 * math.log(2), rel=1e-6)


def test_make_objective_ignores_padding_pairs(params, rows):
    @jax.jit
    def gradient(params, batch):
        def loss(params):
            sums = make_objective(MODEL)(params, batch, None)
            return sums.loss_sum, sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        return sums, grads

    filled = stack_trees(pad_batch([rows[0]], 3, rows.padding))
    other = stack_trees([rows[0], rows[1], rows[2]]).replace(weights=filled.weights)
    found, same = gradient(params, filled), gradient(params, other)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(same), strict=True):
        # Pairs of weight 0 add zeros; at most the order of sums differs.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    assert float(found[0].weight_sum) == 1


def test_from_language_model_keeps_the_hidden_states():
    language = initial(param_specs(MODEL), seed=1)
    score = np.asarray(np.arange(MODEL.hidden_size) == 3, np.float32)
    params = from_language_model(language, score)
    assert params.trunk.head is None
    tokens = np.arange(6 * 96, dtype=np.int32).reshape(6, 96) % 464  # a shape of the tests above
    ones, positions = np.ones_like(tokens), np.tile(np.arange(96, dtype=np.int32), (6, 1))
    want = jax.jit(functools.partial(hidden_states, config=MODEL))(
        language, tokens, positions, segment_ids=ones
    )
    got = compiled_scores(params, tokens, ones, config=MODEL)
    np.testing.assert_allclose(got, np.asarray(want)[:, :, 3], rtol=1e-6)  # times 1, plus zeros


def test_agreement_accuracy_error_and_calibration():
    agreement = Agreement("a", np.array([4.0, 0.1, -0.1, 0.0], np.float32))
    assert agreement.accuracy == (2 + 0.5) / 4
    assert agreement.standard_error == pytest.approx(math.sqrt(0.625 * 0.375 / 4))
    low, high = agreement.calibration(bins=2)
    # Confidence sigmoid(|m|): 0.525, 0.525 and 0.5 are in the lower bin, 0.982 in the upper one.
    assert low == (pytest.approx((2 * 0.52498 + 0.5) / 3, abs=1e-5), 0.5, 3)
    assert high == (pytest.approx(0.98201, abs=1e-5), 1.0, 1)
    sure = Agreement("b", np.array([1e4, -1e4], np.float32))
    assert sure.calibration() == [(1.0, 0.5, 2)]


def test_measure_counts_every_pair_once_with_one_program(params, rows):
    batches = [stack_trees([rows[0], rows[1]]), stack_trees(pad_batch([rows[2]], 2, rows.padding))]
    before = compiled_margins._cache_size()
    for _ in range(2):
        agreement = measure("demo", params, batches, config=MODEL, put=lambda batch: batch)
    assert compiled_margins._cache_size() == before + 1
    want = compiled_margins(params, stack_trees([rows[i] for i in range(3)]), config=MODEL)
    np.testing.assert_allclose(agreement.margins, want, atol=1e-5)  # other pairs in the batch
    shown = table([("PMP", [agreement]), ("RM", [agreement])])
    assert "demo" in shown and f"{100 * agreement.accuracy:.2f} ±" in shown and "3 pairs" in shown
    assert [line.split("  ")[0].strip() for line in shown.splitlines()] == ["", "PMP", "RM", ""]
