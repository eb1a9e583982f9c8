"""An interpolated modified Kneser-Ney model over token ids.

It is the baseline for a trained model's held-out perplexity. For a history h of m - 1 tokens and a
token w,

    P_m(w | h) = max(c(h w) - D(c(h w)), 0) / c(h) + gamma(h) P_{m-1}(w | h without its first)

where c(h) sums c(h w) over w, gamma(h) is the discounted mass, and P_0 = 1 / V. At the highest
order c counts occurrences. At lower orders it counts the distinct tokens seen before h w: a token
that follows few histories is unlikely after a new one. D has three values, for counts of 1, 2, and
3 or more, estimated from the counts of counts (Chen and Goodman, 1998).
"""

import dataclasses
import math

import numpy as np

from qwen_jax.errors import ConfigError, DataError

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # used if the counts of counts are too small


@dataclasses.dataclass(frozen=True)
class _Level:
    """The n-grams of one order, packed into integers and sorted, with their terms of P."""

    grams: np.ndarray  # uint64 [n-grams]
    discounted: np.ndarray  # float64 [n-grams]; (c - D(c)) / c(h)
    histories: np.ndarray  # uint64 [histories]; the n-grams without their last token
    gamma: np.ndarray  # float64 [histories]

    def interpolate(self, grams: np.ndarray, history: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Returns P of this order, given P of the next lower order, `lower`.

        For an unseen history it equals `lower`.
        """
        at, known = _find(self.histories, history)
        gamma = np.where(known, self.gamma[at], 1.0)
        at, known = _find(self.grams, grams)
        return np.where(known, self.discounted[at], 0.0) + gamma * lower


@dataclasses.dataclass(frozen=True)
class NgramModel:
    """An n-gram language model. Create one with `fit`.

    `<|endoftext|>` is an ordinary token, both predicted and part of histories, as in a language
    model trained on the same tokens.
    """

    vocab_size: int
    levels: tuple[_Level, ...]  # one per order: 1, 2, ...

    @classmethod
    def fit(cls, tokens: np.ndarray, order: int = 3, *, vocab_size: int) -> "NgramModel":
        """Fits a model to `tokens`; millions of tokens take seconds, and 100 bytes per token.

        Args:
          tokens: token IDs of concatenated documents; integers [num_tokens].
          order: length of the longest n-gram.
          vocab_size: number of token IDs, including those that do not occur.

        Raises:
          DataError: there are fewer tokens than `order`, or IDs outside the vocabulary.
          ConfigError: n-grams of this order do not fit into 64 bits.
        """
        bits = _bits(vocab_size)
        if order < 1 or order * bits > 64:
            raise ConfigError(
                f"{order}-grams over a vocabulary of {vocab_size} need {order * bits} bits.",
                "NgramModel.fit(order)",
                f"use an order from 1 to {64 // bits}: an n-gram has at most 64 bits.",
            )
        tokens = _check_tokens(tokens, vocab_size, "NgramModel.fit(tokens)", min_tokens=order)

        levels = []
        grams, counts = _count(_pack(tokens, order, bits))
        for m in range(order, 0, -1):
            levels.append(_make_level(grams, counts, np.uint64(bits)))
            if m > 1:  # a distinct n-gram counts once for its last m - 1 tokens
                grams, counts = _count(grams & np.uint64((1 << bits * (m - 1)) - 1))
        return cls(vocab_size=vocab_size, levels=tuple(reversed(levels)))

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        """Returns ln P of each token given those before it; float64 [num_tokens].

        The first tokens have a shorter history and use a lower order.
        """
        tokens = _check_tokens(
            tokens, self.vocab_size, "NgramModel.log_probs(tokens)", min_tokens=1
        )
        bits = _bits(self.vocab_size)
        p = np.full(len(tokens), 1.0 / self.vocab_size)
        for m, level in enumerate(self.levels[: len(tokens)], start=1):
            grams = _pack(tokens, m, bits)
            p[m - 1 :] = level.interpolate(grams, _history(grams, np.uint64(bits)), p[m - 1 :])
        return np.log(p)

    def distribution(self, history: np.ndarray | list[int]) -> np.ndarray:
        """Returns P of every token after `history` (any length); float64 [vocab_size]."""
        history = _check_tokens(
            np.asarray(history, np.int64),
            self.vocab_size,
            "NgramModel.distribution(history)",
            min_tokens=0,
        )
        bits = _bits(self.vocab_size)
        ids = np.arange(self.vocab_size, dtype=np.uint64)
        p = np.full(self.vocab_size, 1.0 / self.vocab_size)
        packed = 0
        for m, level in enumerate(self.levels[: len(history) + 1], start=1):
            if m > 1:
                packed |= int(history[-(m - 1)]) << bits * (m - 2)
            grams = np.uint64(packed << bits) | ids
            p = level.interpolate(grams, _history(grams, np.uint64(bits)), p)
        return p

    def perplexity(self, tokens: np.ndarray) -> float:
        """Returns the perplexity of `tokens`: exp of the mean of -ln P."""
        return math.exp(-float(np.mean(self.log_probs(tokens))))


def _make_level(grams: np.ndarray, counts: np.ndarray, bits: np.uint64) -> _Level:
    discounts = np.asarray((0.0, *_discounts(counts)))
    discount = discounts[np.minimum(counts, 3)]
    history = _history(grams, bits)  # sorted, since the n-grams are
    starts = _starts(history)
    totals = np.add.reduceat(counts, starts).astype(np.float64)
    gamma = np.add.reduceat(discount, starts) / totals
    lengths = np.diff(np.append(starts, len(grams)))
    discounted = (counts - discount) / np.repeat(totals, lengths)
    return _Level(grams=grams, discounted=discounted, histories=history[starts], gamma=gamma)


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """Returns D for counts of 1, 2, and 3 or more, each in (0, its count]."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return _FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    if not all(0 < discount <= count for count, discount in enumerate(found, start=1)):
        return _FALLBACK_DISCOUNTS
    return found


def _bits(vocab_size: int) -> int:
    return max(1, (vocab_size - 1).bit_length())


def _pack(tokens: np.ndarray, order: int, bits: int) -> np.ndarray:
    """Returns the n-gram ending at each token from the `order`-th on; uint64.

    The oldest token has the highest bits.
    """
    length = len(tokens) - order + 1
    grams = tokens[:length].astype(np.uint64)
    for i in range(1, order):
        grams <<= np.uint64(bits)
        grams |= tokens[i : i + length].astype(np.uint64)
    return grams


def _history(grams: np.ndarray, bits: np.uint64) -> np.ndarray:
    """Returns n-grams without their last token."""
    return grams >> bits if bits < 64 else np.zeros_like(grams)  # a shift by 64 is undefined


def _count(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted distinct n-grams and their counts (int64). Sorts `grams` in place."""
    grams.sort()
    starts = _starts(grams)
    return grams[starts], np.diff(np.append(starts, len(grams)))


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Returns the first index of each value in a sorted array."""
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))


def _find(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns an index for each wanted value, and whether the value is at this index."""
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return at, ordered[at] == wanted


def _check_tokens(tokens, vocab_size: int, where: str, *, min_tokens: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or len(tokens) < min_tokens:
        raise DataError(
            f"tokens have dtype {tokens.dtype} and shape {tokens.shape}.",
            where,
            f"pass a 1-D array of integers with at least {min_tokens} elements.",
        )
    if len(tokens) and not (0 <= int(tokens.min()) and int(tokens.max()) < vocab_size):
        raise DataError(
            f"token IDs from {tokens.min()} to {tokens.max()} are outside the vocabulary of "
            f"{vocab_size}.",
            where,
            "use the tokenizer that encoded the tokens.",
        )
    return tokens
