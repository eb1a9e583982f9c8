"""A table of results next to the report's scores."""

from collections.abc import Mapping
from typing import Any

from qwen_jax.evaluate.tasks import TASKS

REPORTED: tuple[str, ...] = ("Qwen 1.8B", "Qwen 7B", "Qwen 14B")


def table(results: Mapping[str, Any]) -> str:
    """Returns results.json as text: scores in percent with their 95 % interval."""
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
                *(f"{published[name]:.1f}" if name in published else "" for name in REPORTED),
                *([f"{record['training_text']['examples']:,}"] if searched else []),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
