"""Intervals and tests against closed forms."""

import math

import numpy as np
import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.grading.statistics import mcnemar, paired_bootstrap, wilson


def test_wilson_solves_its_equation():
    """The ends are where |share - p| is z standard errors of p."""
    share, low, high = wilson(98, 164)
    assert share == 98 / 164
    for end in (low, high):
        error = math.sqrt(end * (1 - end) / 164)
        assert abs(share - end) == pytest.approx(1.959963984540054 * error)


@pytest.mark.parametrize("correct", [0, 7])
def test_wilson_stays_within_0_and_1(correct):
    share, low, high = wilson(correct, 7)
    assert 0 <= low <= share <= high <= 1 and low < high


def test_wilson_refuses_impossible_counts():
    for correct, total in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ConfigError, match="wilson"):
            wilson(correct, total)


def test_paired_bootstrap_has_the_standard_error_of_the_difference():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, (2, 400))
    difference = (first - second).astype(float)
    found = paired_bootstrap(first.tolist(), second.tolist())
    assert found.estimate == pytest.approx(difference.mean())
    error = difference.std() / math.sqrt(400)
    # 10,000 samples: the percentiles are within 3% of the normal distribution's.
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found == paired_bootstrap(first.tolist(), second.tolist())


def test_paired_bootstrap_draws_groups_together():
    """Ten copies of each item are no more evidence than the items."""
    first, second = [1, 0, 1, 1, 0, 1, 1, 0], [0, 0, 1, 0, 1, 0, 1, 0]
    alone = paired_bootstrap(first, second)
    copies = paired_bootstrap(first * 10, second * 10, groups=list(range(8)) * 10)
    assert copies == pytest.approx(alone)
    assert paired_bootstrap(first * 10, second * 10).low > alone.low


def test_paired_bootstrap_refuses_other_items():
    for first, second in (([1], [1, 2]), ([], [])):
        with pytest.raises(ConfigError, match="paired_bootstrap"):
            paired_bootstrap(first, second)
    with pytest.raises(ConfigError, match="groups"):
        paired_bootstrap([1, 0], [0, 0], groups=[1])


def test_mcnemar_is_a_fair_coins_tail():
    def verdicts(only_first, only_second):
        first = [True] * only_first + [False] * only_second + [True, False]
        second = [False] * only_first + [True] * only_second + [True, False]
        return first, second

    assert mcnemar(*verdicts(5, 0)) == pytest.approx(2 / 2**5)
    assert mcnemar(*verdicts(1, 7)) == mcnemar(*verdicts(7, 1)) == pytest.approx(2 * 9 / 2**8)
    assert mcnemar(*verdicts(4, 4)) == 1.0
    assert mcnemar(*verdicts(0, 0)) == 1.0
    with pytest.raises(ConfigError, match="mcnemar"):
        mcnemar([True], [])
