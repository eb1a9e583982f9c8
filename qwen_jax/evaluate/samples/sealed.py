"""A hash in each sample: one that was changed by hand is noticed before its verdict counts.

A sample also names its evaluation, so one that was copied from another model's file is noticed.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.utils.append_only import PATHS
from qwen_jax.utils.jsonl import read_rows

KEY = "sha256"
EVALUATION = "evaluation"


def evaluation(settings: Mapping[str, Any]) -> str:
    """Returns the name of what samples depend on: model, task, prompts, grader and settings."""
    return _hash({name: value for name, value in settings.items() if name != PATHS})[:16]


def seal(sample: Mapping[str, Any], evaluation: str) -> dict[str, Any]:
    """Returns the sample with its evaluation, and the hash of all other fields."""
    sample = {**sample, EVALUATION: evaluation}
    return {**sample, KEY: _digest(sample)}


def check(sample: Mapping[str, Any], where: str, fix: str, evaluation: str | None = None) -> None:
    """Raises DataError, which names the sample, if its fields and its hash do not agree.

    Args:
      evaluation: the sample has to be of this one; None: of any.
    """
    name = str(sample.get("id", "without an id"))[:100]
    if sample.get(KEY) != _digest(sample):
        what = "was changed after it was written" if KEY in sample else f"has no {KEY}"
        raise DataError(f"the sample {name!r} {what}.", where, fix)
    if evaluation not in (None, sample.get(EVALUATION)):
        raise DataError(f"the sample {name!r} is of another evaluation.", where, fix)


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the samples of an evaluation that ended.

    Raises:
      DataError: the file is missing or damaged, or a sample was changed.
    """
    for where, row in read_rows(path):
        check(row, where, "restore the file, or evaluate the task again in another --output.")
        yield row


def _digest(sample: Mapping[str, Any]) -> str:
    fields = {name: value for name, value in sample.items() if name != KEY}
    return _hash(fields)


def _hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
