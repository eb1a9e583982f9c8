"""The file in which people judge samples, and what they kept. Report: 3.4.

A row is {"id", "kind", "question", "tools", "messages", "keep"}: keep is null until somebody sets
it to true or false; messages may be corrected in place. What is in the file is never changed by us;
new samples are added at its end.
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
    """Adds what the file does not have yet; returns all its rows.

    Raises:
      DataError: it is damaged, or has a keep that is not null, true or false.
    """
    path = pathlib.Path(path)
    rows = _read(path) if path.exists() else []
    there = {row["id"] for row in rows}
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
        if sample.id not in there
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
    """Writes what people keep.

    Args:
      path: of conversations, in the form that experiments.sft reads.
      react_path: of those with tools once more, as worked examples to start from another time.
      keep_unreviewed: keep what nobody has judged, too.

    Returns:
      what was kept, and why the rest was not.
    """
    counts, kept, worked = Counts(), [], []
    for row in rows:
        if row["keep"] is False:
            counts.skip("refused by people", row["id"])
        elif row["keep"] is None and not keep_unreviewed:
            counts.skip("not judged yet", row["id"])
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
    """The samples as Markdown to read, those that wait for a judgment first."""
    words = {None: "not judged", True: "kept", False: "refused"}
    ordered = sorted(rows, key=lambda row: row["keep"] is not None)
    waiting = sum(row["keep"] is None for row in rows)
    parts = [
        f"# {len(rows)} samples, {waiting} of them not judged\n\nTo judge one, set its `keep` "
        "to `true` or `false` in review.jsonl; its messages may be corrected there.\n"
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
    for place, row in read_rows(path):
        if not ({"id", "kind", "question", "messages", "keep"} <= row.keys()):
            raise DataError("this is no row of a review.", place, "restore the fields of the row.")
        if (
            row["keep"] not in (None, True, False)
            or isinstance(row["keep"], (int, float))
            and (not isinstance(row["keep"], bool))
        ):
            raise DataError(f"keep is {row['keep']!r}.", place, "set it to null, true or false.")
        rows.append(row)
    return rows


def _fenced(text: str) -> str:
    """In a fence that the text does not end."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
