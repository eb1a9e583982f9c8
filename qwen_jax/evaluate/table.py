"""A table of results next to the report's scores."""

from collections.abc import Mapping
from typing import Any

from qwen_jax.evaluate.tasks import MEANS, TASKS

REPORTED: tuple[str, ...] = ("Qwen 1.8B", "Qwen 7B", "Qwen 14B")


def table(results: Mapping[str, Any]) -> str:
    """Returns results.json as text: scores in percent with their 95 % interval.

    Of several samples of a question, a task's score is pass@1, and pass@k has a row of its own.
    """
    rows: list[tuple[str, ...]] = [
        ("task", "shots", "n", "score", "95 % interval", "floor", "ceiling", *REPORTED)
    ]
    searched = any("training_text" in record for record in results["tasks"].values())
    if searched:
        rows[0] += ("in training text",)
    for key, record in results["tasks"].items():
        low, high = record["interval"]
        floor, ceiling = max(record["floors"].values(), default=None), record.get("ceiling")
        published = TASKS[key].published
        rows.append(
            (
                key,
                str(record["shots"]),
                f"{record['n']:,}"
                + (f" of {record['of']:,}" if record["n"] < record["of"] else ""),
                f"{record['score']:.1f}",
                f"{low:.1f} to {high:.1f}",
                "" if floor is None else f"{floor:.1f}",
                "" if ceiling is None else f"{ceiling:.1f}",
                *_cells(published, TASKS[key].chat),
                *([f"{record['training_text']['examples']:,}"] if searched else []),
            )
        )
        rows += [_pass_row(key, k, one) for k, one in record.get("pass@k", {}).items() if k != "1"]
    for name, record in results.get("means", {}).items():
        low, high = record["interval"]
        mean = MEANS[name]
        rows.append(
            (
                mean_name(name, record),
                "",
                f"{record['n']:,}",
                f"{record['score']:.1f}",
                f"{low:.1f} to {high:.1f}",
                "",
                "",
                *_cells(mean.published, TASKS[mean.tasks[0]].chat),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    missing = [f"{key}: not run: {why}" for key, why in results.get("not_run", {}).items()]
    return "\n".join([*lines, *missing])


def _pass_row(key: str, k: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = record["interval"]
    score = f"{record['score']:.1f}", f"{low:.1f} to {high:.1f}"
    return (f"{key} pass@{k}", "", f"{record['n']:,}", *score, *[""] * (2 + len(REPORTED)))


def reported(published: Mapping[str, float], chat: bool) -> list[float | None]:
    """Returns the published scores of REPORTED, or for chat tasks of their chat models."""
    names = [name.replace("Qwen", "Qwen-Chat") if chat else name for name in REPORTED]
    return [published.get(name) for name in names]


def _cells(published: Mapping[str, float], chat: bool) -> list[str]:
    return ["" if one is None else f"{one:.1f}" for one in reported(published, chat)]


def mean_name(name: str, record: Mapping[str, Any]) -> str:
    """Returns the label of a mean, which says of how many of its tasks it is."""
    count = len(record["tasks"])
    return f"{name}: mean of {count} of {count + len(record['not_in_it'])}"
