"""Several samples of a question become one observation: the share that is right, and its pass@k.

Samples of one question are alike, so they do not count as independent examples: standard errors and
intervals are those of questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.grading.code import pass_at_k

_KS = (1, 10, 100)


def ks(samples: int) -> list[int]:
    """Returns the k whose pass@k is reported: 1, 10 and 100 as far as there are samples, and all.

    Example:
      >>> ks(20)
      [1, 10, 20]
    """
    return sorted({k for k in _KS if k < samples} | {samples})


def pass_key(k: int) -> str:
    return f"pass@{k}"


def by_question(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns one row for each question, in order; rows that are not repeated stay as they are.

    A row's verdicts are shares of its samples, from 0 to 1; "pass@k" are those of `ks`. An error
    counts as wrong.
    """
    if not any("sample" in one for one in samples):
        return list(samples)
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for one in samples:
        rows.setdefault(one["question"], []).append(one)
    return list(map(_joined, rows.values()))


def _joined(own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    n = len(own)
    names = {name for one in own for name in one if name.startswith("correct")}
    shares = {name: sum(bool(one.get(name)) for one in own) / n for name in sorted(names)}
    right = sum(bool(one["correct"]) for one in own)
    passes = {pass_key(k): pass_at_k(n, right, k) for k in ks(n)}
    return {"id": own[0]["question"], "subject": own[0]["subject"], **shares, **passes}
