"""Maintains the file in which people review samples, and collects the kept ones. Report: 3.4.

A row is {"id", "kind", "question", "tools", "messages", "keep"}. `keep` is initially null; a
reviewer sets it to true or false, and may edit the messages. The program appends new samples and
never changes existing rows.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from qwen_jax.data.chat.conversations import Counts, Skipped, check_turns, turns_of
from qwen_jax.errors import DataError
from qwen_jax.synthetic.self_instruct import Sample
from qwen_jax.utils.jsonl import read_rows, write_rows


def update(path: str | os.PathLike, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Appends the samples that are not in the file yet; returns all of its rows.

    Raises:
      DataError: the file is corrupted, or a `keep` is not null, true or false.
    """
    path = pathlib.Path(path)
    rows = _read(path) if path.exists() else []
    known = {row["id"] for row in rows}
    rows += [
        {
            "id": sample.id,
            "kind": sample.kind,
            "question": sample.question,
            "tools": list(sample.tools),
            "messages": [{"role": role, "content": text} for role, text in sample.messages],
            "keep": None,
        }
        for sample in samples
        if sample.id not in known
    ]
    write_rows(path, rows)
    return rows


def collect(
    rows: Sequence[dict[str, Any]],
    path: str | os.PathLike,
    react_path: str | os.PathLike,
    *,
    keep_unreviewed: bool,
) -> Counts:
    """Writes the kept samples.

    Args:
      path: output file for all kept samples, as conversations in the format of experiments.sft.
      react_path: output file for those with tools, as worked examples for another run.
      keep_unreviewed: whether to keep samples that have not been reviewed.

    Returns:
      The number of kept samples, and that of skipped samples by reason.
    """
    counts, kept, worked = Counts(), [], []
    for row in rows:
        if row["keep"] is False:
            counts.skip("rejected in review", row["id"])
        elif row["keep"] is None and not keep_unreviewed:
            counts.skip("not reviewed yet", row["id"])
        else:
            try:
                check_turns(turns_of(row, row["id"]))
            except Skipped as reason:
                counts.skip(str(reason), row["id"])
                continue
            counts.kept += 1
            kept.append({"messages": row["messages"]})
            if row["kind"] == "react":
                worked.append(
                    {
                        "question": row["question"],
                        "tools": row["tools"],
                        "answer": row["messages"][-1]["content"],
                    }
                )
    write_rows(pathlib.Path(path), kept)
    write_rows(pathlib.Path(react_path), worked)
    return counts


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the samples as Markdown, unreviewed ones first."""
    words = {None: "not reviewed", True: "kept", False: "rejected"}
    ordered = sorted(rows, key=lambda row: row["keep"] is not None)
    waiting = sum(row["keep"] is None for row in rows)
    parts = [
        f"# {len(rows)} samples, {waiting} not reviewed\n\nTo review a sample, set its "
        "`keep` to `true` or `false` in review.jsonl; you may edit its messages there.\n"
    ]
    for row in ordered:
        tools = f", tools: {', '.join(row['tools'])}" if row.get("tools") else ""
        parts.append(
            f"## {row['id']} ({row['kind']}{tools}): {words[row['keep']]}\n\n"
            f"{_fenced(row['question'])}\n\n{_fenced(row['messages'][-1]['content'])}\n"
        )
    return "\n".join(parts)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    rows = []
    for where, row in read_rows(path):
        if not ({"id", "kind", "question", "messages", "keep"} <= row.keys()):
            raise DataError(
                "this row is missing fields.",
                where,
                "restore its id, kind, question, messages and keep.",
            )
        if (
            row["keep"] not in (None, True, False)
            or isinstance(row["keep"], (int, float))
            and (not isinstance(row["keep"], bool))
        ):
            raise DataError(
                f"keep is {row['keep']!r}, which is not a valid value.",
                where,
                "set it to null, true or false.",
            )
        rows.append(row)
    return rows


def _fenced(text: str) -> str:
    """Returns the text in a code fence longer than any fence inside it."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
