"""DPO's objective by hand: the same pairs, the reference's log-probabilities beside them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.align.dpo import ComparedPairs, answer_log_probs, make_objective
from qwen_jax.data.batches import fill_up, stack_trees
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import Pair, PairRows
from qwen_jax.model.spec import init_params
from qwen_jax.model.transformer import forward
from qwen_jax.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
MODEL = dataclasses.replace(sizes.TINY, vocab_size=464, context_length=96)
PAIRS = [
    Pair((("user", "hi"),), "yes", "not at all", "a"),
    Pair((("user", "a longer question"),), "a longer answer", "no", "b"),
]
OBJECTIVE = jax.jit(make_objective(MODEL, beta=0.5))
ANSWERS = jax.jit(functools.partial(answer_log_probs, config=MODEL))


@pytest.fixture(scope="module")
def params():
    # Larger than weights are drawn, so that answers differ in more than their lengths.
    drawn = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
    return jax.tree.map(lambda x: x * 3, drawn)


@pytest.fixture(scope="module")
def rows():
    return PairRows(PAIRS, TOKENIZER, context_length=96, counts=Counts(kept=2))


@pytest.fixture(scope="module")
def pairs(rows):
    return stack_trees([rows[0], rows[1]])


@pytest.fixture(scope="module")
def own(params, pairs):
    return ANSWERS(params, pairs)


def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens_and_its_end(
    params, pairs, own
):
    tokens, segments = (x.reshape(4, 96) for x in (pairs.tokens, pairs.segment_ids))
    logits = jax.jit(functools.partial(forward, config=MODEL, inference=False))(
        params, tokens, segment_ids=segments
    )
    log_p = np.asarray(jax.nn.log_softmax(logits)).reshape(2, 2, 96, -1)
    for i, pair in enumerate(PAIRS):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            n, answer_tokens = int(pairs.end[i, side]) + 1, len(answer) + 1
            want = sum(
                float(log_p[i, side, t - 1, pairs.tokens[i, side, t]])
                for t in range(n - answer_tokens, n)
            )
            assert float(own[i, side]) == pytest.approx(want, rel=1e-5)  # float32's sums


def test_the_loss_by_hand(params, pairs, own):
    # The reference gives: chosen 2 less and rejected 1 more; chosen 0.5 more and rejected the same.
    reference = own + jnp.asarray([[-2.0, 1.0], [0.5, 0.0]], jnp.float32)
    sums = OBJECTIVE(params, ComparedPairs(pairs, reference), None)
    margins = [0.5 * (2 + 1), 0.5 * (-0.5 - 0)]
    # Log-probabilities are sums of size 100, of float32's 7 digits.
    assert float(sums.loss_sum) == pytest.approx(
        sum(math.log1p(math.exp(-m)) for m in margins), abs=1e-4
    )
    assert float(sums.weight_sum) == 2 and float(sums.extras["accuracy"]) == 1
    assert float(sums.extras["margin"]) == pytest.approx(sum(margins), abs=1e-4)
    assert float(sums.extras["chosen_reward"]) == pytest.approx(0.5 * (2 - 0.5), abs=1e-4)
    assert float(sums.extras["rejected_reward"]) == pytest.approx(0.5 * -1, abs=1e-4)


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected(params, pairs, own):
    compared = ComparedPairs(pairs, own)
    loss, grads = jax.jit(
        jax.value_and_grad(lambda p: make_objective(MODEL, beta=0.1)(p, compared, None).loss_sum)
    )(params)
    assert float(loss) == pytest.approx(2 * math.log(2), abs=1e-5)
    moved = jax.tree.map(lambda p, g: p - jnp.float32(0.01) * g, params, grads)
    gain = ANSWERS(moved, pairs) - own
    assert np.all(gain[:, 0] > gain[:, 1])


def test_pairs_that_fill_up_a_batch_weigh_nothing(params, rows, own):
    filled = stack_trees(fill_up([rows[0]], 2, rows.padding))
    reference = jnp.stack([own[0] - 1.0, jnp.zeros(2)])
    sums = OBJECTIVE(params, ComparedPairs(filled, reference), None)
    assert float(sums.weight_sum) == 1
    assert float(sums.loss_sum) == pytest.approx(math.log(2), abs=1e-4)  # sums of size 100
    assert float(sums.extras["chosen_reward"]) == pytest.approx(0.5, abs=1e-4)
