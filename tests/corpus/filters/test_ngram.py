"""The n-gram baseline against the textbook definition over dictionaries."""

import collections
import math

import numpy as np
import pytest

from qwen_jax.corpus.filters.ngram import NgramModel
from qwen_jax.errors import ConfigError, DataError


def _text(length, vocab, seed=0):
    """A structured stream: a token depends on the previous two; most tokens are rare."""
    rng = np.random.default_rng(seed)
    tokens = [0, 0]
    for _ in range(length - 2):
        jump = int((1 - rng.random()) ** -1.2)  # zipf() differs between versions of numpy
        tokens.append((tokens[-1] * 3 % 8 + tokens[-2] % 32 + jump) % (vocab - 3))
    return np.asarray(tokens, np.int32)  # the last three never occur


class _Definition:
    """Interpolated modified Kneser-Ney with dictionaries, one probability at a time."""

    def __init__(self, tokens, order, vocab):
        self.vocab, self.order, tokens = vocab, order, list(map(int, tokens))
        self.counts = {
            order: collections.Counter(
                tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)
            )
        }
        for m in range(order - 1, 0, -1):
            self.counts[m] = collections.Counter(gram[1:] for gram in self.counts[m + 1])
        self.discounts = {m: self._discounts(counter) for m, counter in self.counts.items()}

    @staticmethod
    def _discounts(counter):
        n = collections.Counter(counter.values())
        assert min(n[1], n[2], n[3], n[4]) > 0, "the test text must exercise the estimate"
        y = n[1] / (n[1] + 2 * n[2])
        found = {k: k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)}
        assert all(0 < found[k] <= k for k in found), found
        return found

    def p(self, history, w):
        if len(history) > self.order - 1:
            history = history[-(self.order - 1) :] if self.order > 1 else ()
        m = len(history) + 1
        followers = {g[-1]: c for g, c in self.counts[m].items() if g[:-1] == history}
        lower = self.p(history[1:], w) if m > 1 else 1 / self.vocab
        if not followers:
            return lower
        total = sum(followers.values())
        discount = {v: self.discounts[m][min(c, 3)] for v, c in followers.items()}
        own = max(followers.get(w, 0) - discount.get(w, 0), 0) / total
        return own + sum(discount.values()) / total * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_log_probs_match_the_definition(order):
    vocab = 3000
    train, held_out = _text(6000, vocab), _text(60, vocab, seed=1)
    held_out[10] = vocab - 1  # a token unseen in training
    model, slow = NgramModel.fit(train, order, vocab_size=vocab), _Definition(train, order, vocab)
    tokens = tuple(map(int, held_out))
    expected = [math.log(slow.p(tokens[:i], w)) for i, w in enumerate(tokens)]
    np.testing.assert_allclose(model.log_probs(held_out), expected, rtol=1e-12)
    assert model.perplexity(held_out) == pytest.approx(math.exp(-np.mean(expected)), rel=1e-12)


@pytest.mark.parametrize("history", [[], [5], [5, 9], [1, 2, 3, 39], [39, 39]])
def test_distribution_sums_to_one_after_seen_and_unseen_histories(history):
    tokens = _text(3000, 40)
    model = NgramModel.fit(tokens, 3, vocab_size=40)
    p = model.distribution(history)
    assert p.sum() == pytest.approx(1.0, abs=1e-12) and (p > 0).all()
    for w in (0, 7, 39):
        single = model.log_probs(np.asarray([*history, w]))[-1]
        assert math.log(p[w]) == pytest.approx(single, rel=1e-12)


def test_ngram_model_of_a_tiny_text_gives_a_distribution():
    model = NgramModel.fit(np.asarray([3, 1, 3]), 3, vocab_size=5)
    for history in ([], [3], [3, 1], [4, 4]):
        assert model.distribution(history).sum() == pytest.approx(1.0, abs=1e-12)


def test_ngram_model_of_higher_order_has_lower_perplexity():
    vocab = 500
    train, held_out = _text(100_000, vocab), _text(5000, vocab, seed=1)
    by_order = [NgramModel.fit(train, n, vocab_size=vocab).perplexity(held_out) for n in (1, 2, 3)]
    assert vocab > by_order[0] > 2 * by_order[2]  # bigrams do not help with this text


def test_ngram_model_packs_three_tokens_of_18_bits():
    tokens = _text(5000, 151_936)
    tokens[::50] = 151_935
    p = NgramModel.fit(tokens, 3, vocab_size=151_936).distribution([151_935, 3])
    assert p.sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("tokens", "order", "error", "word"),
    [
        ([1, 2], 3, DataError, "at least 3"),
        ([1, 2, 10], 3, DataError, "vocabulary of 10"),
        ([1, -2, 3], 3, DataError, "-2"),
        ([1.0, 2.0, 3.0], 3, DataError, "float64"),
        ([1, 2, 3], 0, ConfigError, "order"),
        ([1] * 30, 17, ConfigError, "1 to 16"),
    ],
)
def test_fit_rejects_bad_tokens_and_orders(tokens, order, error, word):
    with pytest.raises(error, match=word):
        NgramModel.fit(np.asarray(tokens), order, vocab_size=10)
