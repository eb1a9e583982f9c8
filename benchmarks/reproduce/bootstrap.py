"""Intervals over seeds and items. All arms of a claim are measured on the same held-out items."""

import math
from collections.abc import Sequence

import numpy as np

from qwen_jax.grading.statistics import Interval

_SAMPLES = 4000
# The 97.5 % points of Student's t distribution with 1 to 9 degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def mean(values: Sequence[Sequence[float]]) -> Interval:
    """Returns the mean of [seeds, items] and its 95 % interval.

    Seeds and items are sampled anew, both with replacement: the interval covers another seed and
    other items. With one item per seed (a loss) it is Student's, over the seeds. With one seed it
    covers the items only.
    """
    table = np.asarray(values, np.float64)
    seeds, items = table.shape
    estimate = float(table.mean())
    if items == 1:
        return _student(table[:, 0])
    rng = np.random.default_rng(0)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), _SAMPLES) / seeds
    by_item = rng.multinomial(items, np.full(items, 1 / items), _SAMPLES) / items
    means = np.einsum("bs,si,bi->b", by_seed, table, by_item, optimize=True)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(estimate, float(low), float(high))


def difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval:
    """Returns the mean of first - second and its interval; both have the same seeds and items."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"arms of {a.shape} and {b.shape} [seeds, items] are not comparable")
    return mean((a - b).tolist())


def _student(values: np.ndarray) -> Interval:
    estimate, n = float(values.mean()), len(values)
    if n == 1:
        return Interval(estimate, math.nan, math.nan)
    half = _STUDENT[min(n - 1, len(_STUDENT)) - 1] * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(estimate, estimate - half, estimate + half)
