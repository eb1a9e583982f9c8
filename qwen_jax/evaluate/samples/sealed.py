"""A hash in each sample: one that was changed by hand is noticed before its verdict counts."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from qwen_jax.errors import DataError

KEY = "sha256"


def seal(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sample with the hash of its other fields."""
    return {**sample, KEY: _digest(sample)}


def check(sample: Mapping[str, Any], where: str, fix: str) -> None:
    """Raises DataError, which names the sample, if its fields and its hash do not agree."""
    if sample.get(KEY) == _digest(sample):
        return
    name = str(sample.get("id", "without an id"))[:100]
    what = "was changed after it was written" if KEY in sample else f"has no {KEY}"
    raise DataError(f"the sample {name!r} {what}.", where, fix)


def _digest(sample: Mapping[str, Any]) -> str:
    fields = {name: value for name, value in sample.items() if name != KEY}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
