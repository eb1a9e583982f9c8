"""Compares two evaluations on the same examples: difference, interval, test, and what flipped.

    OUTPUT/compare.json       for each task: both scores, their difference, its interval, p-values
    OUTPUT/flips/TASK.jsonl   examples that one answers right and the other wrong

Differences are A - B in percentage points. An example's difference is -1, 0 or 1, or, of
several samples, a difference of shares; few values, so a bootstrap sample of a subject is a draw
from a multinomial distribution. Where a score is the mean over
subjects or counts points, the difference does too, and each subject is drawn by itself.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate.samples import sealed
from qwen_jax.evaluate.samples.repeated import by_question
from qwen_jax.grading import statistics
from qwen_jax.utils.files import read_json, write_json
from qwen_jax.utils.jsonl import write_rows

SAMPLES = 10_000  # of the bootstrap
_SAME = (
    "protocol",
    "shots",
    "n",
    "samples",
    "average",
    "points",
    "stops",
    "max_new_tokens",
    "grader",
)
_SHOWN = ("completion", "extracted", "rule", "logprobs", "finish", "error")


def compare(
    a: str | os.PathLike, b: str | os.PathLike, output: str | os.PathLike
) -> dict[str, Any]:
    """Compares the outputs of two evaluations, and writes OUTPUT.

    Args:
      a, b: outputs of evaluate.run.

    Returns:
      The content of compare.json; scores and differences are in percent.

    Raises:
      ConfigError: they have no task in common; or prompts, examples, stops or graders differ.
      DataError: a file is missing or damaged.
    """
    folders = [pathlib.Path(a), pathlib.Path(b)]
    results = [_results(folder) for folder in folders]
    names = [list(one["tasks"]) for one in results]
    common = [name for name in names[0] if name in names[1]]
    if not common:
        raise ConfigError(
            f"no task is in both: {', '.join(names[0])}; {', '.join(names[1])}.",
            f"--compare={a},{b}",
            "evaluate both models on one task.",
        )
    for name in common:
        _check_settings(name, [one["tasks"][name] for one in results], folders)
    record: dict[str, Any] = {
        "a": str(a),
        "b": str(b),
        "only_a": [name for name in names[0] if name not in common],
        "only_b": [name for name in names[1] if name not in common],
        "bootstrap_samples": SAMPLES,
        "tasks": {},
    }
    target = pathlib.Path(output)
    (target / "flips").mkdir(parents=True, exist_ok=True)
    for name in common:
        first, second = (_samples(folder, name) for folder in folders)
        _check_examples(name, first, second, folders)
        macro = results[0]["tasks"][name]["average"] == "subjects"
        points = results[0]["tasks"][name].get("points")
        flips = list(_flips(first, second))
        write_rows(target / "flips" / f"{name}.jsonl", flips)
        record["tasks"][name] = _difference(first, second, macro, points) | {
            "score_a": results[0]["tasks"][name]["score"],
            "score_b": results[1]["tasks"][name]["score"],
            "truncated": [results[i]["tasks"][name]["truncated"] for i in (0, 1)],
            "errors": [results[i]["tasks"][name]["errors"] for i in (0, 1)],
        }
    _add_holm(record["tasks"])
    write_json(target / "compare.json", record)
    return record


def bootstrap(
    differences: Mapping[str, Sequence[float]],
    macro: bool,
    points: Mapping[str, float] | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> statistics.Interval:
    """Returns the mean difference and its 95 % bootstrap interval, as shares.

    Args:
      differences: subject -> the difference of each of its examples, from -1 to 1.
      macro: whether it is the mean of the subjects' means, not of all examples.
      points: subject -> what an example counts there; None: all count the same.
    """
    if not (macro or points):
        differences = {"": [one for own in differences.values() for one in own]}
    rng = np.random.default_rng(seed)
    total, drawn = 0.0, np.zeros(samples)
    sizes = {name: points[name] * len(own) if points else 1 for name, own in differences.items()}
    for name, own in differences.items():
        n, values = len(own), sorted({1.0, -1.0, 0.0, *own}, key=_order)
        counts = np.array([sum(one == value for one in own) for value in values])
        found = rng.multinomial(n, counts / n, size=samples)
        drawn += sizes[name] * (found @ values) / n
        total += sizes[name] * (counts @ values) / n
    size = sum(sizes.values())
    low, high = np.percentile(drawn / size, [2.5, 97.5])
    return statistics.Interval(float(total / size), float(low), float(high))


def _order(value: float) -> tuple[int, float]:
    """1, -1, 0, then shares: the draws of a bootstrap depend on the order."""
    return (0, -abs(value) - (value > 0)) if value in (0, 1, -1) else (1, value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that hold for all tests together (Holm's method)."""
    order = np.argsort(p_values, kind="stable")
    found, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = highest
    return found


def table(record: Mapping[str, Any]) -> str:
    """Returns compare.json as text."""
    rows = [("task", "n", "A", "B", "A - B", "95 % interval", "p", "p (Holm)", "A only", "B only")]
    for name, one in record["tasks"].items():
        low, high = one["interval"]
        rows.append(
            (
                name,
                f"{one['n']:,}",
                f"{one['score_a']:.1f}",
                f"{one['score_b']:.1f}",
                f"{one['difference']:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                f"{one['p']:.3g}",
                f"{one['p_holm']:.3g}",
                f"{one['only_a_right']:,}",
                f"{one['only_b_right']:,}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [f"A: {record['a']}", f"B: {record['b']}"]
    for side in ("a", "b"):
        if record[f"only_{side}"]:
            lines.append(f"only in {side.upper()}: {', '.join(record[f'only_{side}'])}")
    for name, one in record["tasks"].items():
        for what in ("truncated", "errors"):
            if any(one[what]):
                lines.append(f"note: {name}: {what}: {one[what][0]:,} of A, {one[what][1]:,} of B")
    return "\n".join(lines)


def _results(folder: pathlib.Path) -> dict[str, Any]:
    found = read_json(folder / "results.json")
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        raise DataError(
            "not the results of an evaluation.",
            str(folder / "results.json"),
            "pass the --output of an evaluation that has ended.",
        )
    return found


def _samples(folder: pathlib.Path, name: str) -> list[dict[str, Any]]:
    return [*sealed.read(folder / "samples" / f"{name}.jsonl")]


def _check_settings(
    name: str, records: Sequence[Mapping[str, Any]], folders: Sequence[pathlib.Path]
) -> None:
    """Raises ConfigError if verdicts of the two cannot be compared."""
    a, b = records
    different = [key for key in _SAME if a.get(key) != b.get(key)]
    if different:
        raise ConfigError(
            f"{name} was evaluated in two ways: "
            + "; ".join(f"{key}: {a.get(key)!r} and {b.get(key)!r}" for key in different)
            + ".",
            f"--compare={folders[0]},{folders[1]}",
            "evaluate one of them again with the other's settings and version.",
        )


def _check_examples(
    name: str,
    a: Sequence[Mapping[str, Any]],
    b: Sequence[Mapping[str, Any]],
    folders: Sequence[pathlib.Path],
) -> None:
    """Raises ConfigError at the first example whose prompt, choices or gold answer differ."""
    if len(a) != len(b):
        raise ConfigError(
            f"{name} has {len(a):,} and {len(b):,} examples.",
            f"--compare={folders[0]},{folders[1]}",
            "evaluate both with the same --limit.",
        )
    for one, other in zip(a, b, strict=True):
        for key in ("id", "prompt", "choices", "gold"):
            if one.get(key) != other.get(key):
                raise ConfigError(
                    f"the {key} of an example differs: {str(one.get(key))[-80:]!r} and "
                    f"{str(other.get(key))[-80:]!r}.",
                    f"{name} {one['id']}",
                    "evaluate both with the same data and the same version of the task.",
                )


def _difference(
    a: Sequence[Mapping[str, Any]],
    b: Sequence[Mapping[str, Any]],
    macro: bool,
    points: Mapping[str, float] | None,
) -> dict[str, Any]:
    by_subject: dict[str, list[float]] = {}
    for one, other in zip(by_question(a), by_question(b), strict=True):
        by_subject.setdefault(one["subject"], []).append(
            float(one["correct"]) - float(other["correct"])
        )
    found = bootstrap(by_subject, macro, points)
    every = [one for own in by_subject.values() for one in own]
    better = [one > 0 for one in every], [one < 0 for one in every]  # more samples are right
    return {
        "n": len(every),
        "difference": 100 * found.estimate,
        "interval": [100 * found.low, 100 * found.high],
        "p": statistics.mcnemar(*better),
        "only_a_right": sum(better[0]),
        "only_b_right": sum(better[1]),
    }


def _flips(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]):
    """Yields the examples with two verdicts."""
    for one, other in zip(a, b, strict=True):
        if bool(one["correct"]) != bool(other["correct"]):
            yield {
                **{key: one[key] for key in ("id", "subject", "prompt", "gold")},
                **{
                    side: {"correct": bool(row["correct"])}
                    | {key: row[key] for key in _SHOWN if key in row}
                    for side, row in (("a", one), ("b", other))
                },
            }


def _add_holm(tasks: Mapping[str, dict[str, Any]]) -> None:
    adjusted = holm([one["p"] for one in tasks.values()])
    for one, value in zip(tasks.values(), adjusted, strict=True):
        one["p_holm"] = value
