"""Rows of a claim's table from what its cells measured."""

from benchmarks.reproduce.bootstrap import difference, mean
from benchmarks.reproduce.claim import Measured, Row
from benchmarks.reproduce.lab import rows_of
from qwen_jax.grading.statistics import Interval


def row(
    measured: Measured, arm: str, key: str, name: str, *, percent: bool = True, report: str = ""
) -> Row:
    """Returns the row of one arm: the mean of what it measured under `key`."""
    values = rows_of(measured, arm, key)
    per_seed = tuple(sum(each) / len(each) for each in values)
    return Row(name, *mean(values), per_seed=per_seed, percent=percent, report=report)


def gap(measured: Measured, first: str, second: str, key: str) -> Interval:
    """Returns the interval of first - second."""
    return difference(rows_of(measured, first, key), rows_of(measured, second, key))
