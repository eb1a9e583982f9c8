"""Uncertainty of scores: Wilson's interval, the paired bootstrap, McNemar's exact test."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qwen_jax.errors import ConfigError

_Z95 = 1.959963984540054  # the 97.5% point of the normal distribution


class Interval(NamedTuple):
    """An estimate with the ends of its interval."""

    estimate: float
    low: float
    high: float


def wilson(correct: float, total: int, z: float = _Z95) -> Interval:
    """Returns a proportion and Wilson's 95% interval, which is right for small n and near 0 and 1.

    Args:
      correct: number of successes, from 0 to `total`; fractions are credits for ties.
      z: the normal distribution's point; 1.96 for 95%.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ConfigError(f"{correct} of {total} items.", "wilson", "give 0 <= correct <= total.")
    share = correct / total
    scale = 1 + z * z / total
    center = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends, rounding must not leave the estimate outside.
    return Interval(share, min(max(center - half, 0.0), share), max(min(center + half, 1.0), share))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    groups: Sequence[object] | None = None,
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Returns the mean difference first - second on the same items and its bootstrap interval.

    Args:
      first, second: scores [n] of two systems, item by item.
      groups: a label [n] of each item; items with one label, such as questions on one passage, are
        drawn together.
      samples: bootstrap samples; the interval is between their percentiles.
      seed: of the random numbers: equal inputs give equal intervals.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ConfigError(
            f"scores of shapes {a.shape} and {b.shape}.",
            "paired_bootstrap",
            "give two lists of the same items, at least one.",
        )
    labels = (
        np.arange(len(a)) if groups is None else np.unique(list(groups), return_inverse=True)[1]
    )
    if len(labels) != len(a):
        raise ConfigError(
            f"{len(labels)} groups of {len(a)} items.", "paired_bootstrap", "give one a item."
        )
    difference = a - b
    sums, sizes = np.bincount(labels, difference), np.bincount(labels)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    rows = max(1, 2_000_000 // len(sums))  # at a time: 16 MB
    for begin in range(0, samples, rows):
        drawn = rng.integers(0, len(sums), (min(rows, samples - begin), len(sums)))
        means[begin : begin + rows] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(difference.mean()), float(low), float(high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Returns the two-sided p-value of McNemar's exact test: do two systems differ on these items?

    Only items count that one system solves and the other does not. If both were equally good, they
    would be a fair coin's heads and tails. 1.0 if there is no such item.
    """
    if len(first) != len(second):
        raise ConfigError(
            f"{len(first)} and {len(second)} verdicts.", "mcnemar", "give the same items twice."
        )
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    n, smaller = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(smaller + 1))
    return min(1.0, 2 * tail / 2**n)
