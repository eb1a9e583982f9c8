"""The DPO objective against values computed by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.align.dpo import DPOBatch, make_objective, response_log_probs
from qwen_jax.data.batches import pad_batch, stack_trees
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import Pair, PairRows
from qwen_jax.model.spec import param_specs
from qwen_jax.model.transformer import forward
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.weights import initial

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
MODEL = dataclasses.replace(sizes.TINY, vocab_size=464, context_length=96)
PAIRS = [
    Pair((("user", "hi"),), "yes", "not at all", "a"),
    Pair((("user", "a longer question"),), "a longer answer", "no", "b"),
]
OBJECTIVE = jax.jit(make_objective(MODEL, beta=0.5))
RESPONSE_LOG_PROBS = jax.jit(functools.partial(response_log_probs, config=MODEL))


@pytest.fixture(scope="module")
def params():
    # Scaled up: otherwise responses differ in little more than their lengths.
    wide = dataclasses.replace(MODEL, initializer_range=3 * MODEL.initializer_range)
    return initial(param_specs(wide))


@pytest.fixture(scope="module")
def rows():
    return PairRows(PAIRS, TOKENIZER, context_length=96, counts=Counts(kept=2))


@pytest.fixture(scope="module")
def pairs(rows):
    return stack_trees([rows[0], rows[1]])


@pytest.fixture(scope="module")
def policy_log_probs(params, pairs):
    return np.asarray(RESPONSE_LOG_PROBS(params, pairs))


def test_response_log_probs_sum_over_the_tokens_and_the_end_token(params, pairs, policy_log_probs):
    tokens, segments = (x.reshape(4, 96) for x in (pairs.tokens, pairs.segment_ids))
    logits = np.asarray(
        jax.jit(functools.partial(forward, config=MODEL, inference=False))(
            params, tokens, segment_ids=segments
        )
    )
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    log_p = log_p.reshape(2, 2, 96, -1)
    for i, pair in enumerate(PAIRS):
        for side, response in enumerate((pair.chosen, pair.rejected)):
            n, response_tokens = int(pairs.end[i, side]) + 1, len(response) + 1
            want = sum(
                float(log_p[i, side, t - 1, pairs.tokens[i, side, t]])
                for t in range(n - response_tokens, n)
            )
            assert float(policy_log_probs[i, side]) == pytest.approx(want, rel=1e-5)  # float32 sums


def test_make_objective_equals_the_loss_by_hand(params, pairs, policy_log_probs):
    # Differences of the reference: chosen -2 and rejected +1; chosen +0.5 and rejected 0.
    reference = policy_log_probs + np.asarray([[-2.0, 1.0], [0.5, 0.0]], np.float32)
    sums = OBJECTIVE(params, DPOBatch(pairs, reference), None)
    margins = [0.5 * (2 + 1), 0.5 * (-0.5 - 0)]
    # Log-probabilities are sums of magnitude 100 in float32, which has 7 digits.
    assert float(sums.loss_sum) == pytest.approx(
        sum(math.log1p(math.exp(-m)) for m in margins), abs=1e-4
    )
    assert float(sums.weight_sum) == 2 and float(sums.extras["accuracy"]) == 1
    assert float(sums.extras["margin"]) == pytest.approx(sum(margins), abs=1e-4)
    assert float(sums.extras["chosen_reward"]) == pytest.approx(0.5 * (2 - 0.5), abs=1e-4)
    assert float(sums.extras["rejected_reward"]) == pytest.approx(0.5 * -1, abs=1e-4)


def test_make_objective_gradient_prefers_the_chosen_response(params, pairs, policy_log_probs):
    batch = DPOBatch(pairs, policy_log_probs)

    @jax.jit
    def descend(params):
        loss, grads = jax.value_and_grad(
            lambda p: make_objective(MODEL, beta=0.1)(p, batch, None).loss_sum
        )(params)
        return loss, jax.tree.map(lambda p, g: p - jnp.float32(0.01) * g, params, grads)

    loss, updated = descend(params)
    assert float(loss) == pytest.approx(2 * math.log(2), abs=1e-5)
    gain = RESPONSE_LOG_PROBS(updated, pairs) - policy_log_probs
    assert np.all(gain[:, 0] > gain[:, 1])


def test_make_objective_ignores_padding_pairs(params, rows, policy_log_probs):
    filled = stack_trees(pad_batch([rows[0]], 2, rows.padding))
    reference = np.stack([policy_log_probs[0] - np.float32(1), np.zeros(2, np.float32)])
    sums = OBJECTIVE(params, DPOBatch(filled, reference), None)
    assert float(sums.weight_sum) == 1
    assert float(sums.loss_sum) == pytest.approx(math.log(2), abs=1e-4)  # sums of magnitude 100
    assert float(sums.extras["chosen_reward"]) == pytest.approx(0.5, abs=1e-4)
