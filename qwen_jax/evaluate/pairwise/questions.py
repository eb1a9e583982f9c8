"""Questions that models are compared on: a user's file, or our 300 instructions. Report: 3.3.

The report's own 300 Chinese instructions are not published. Ours have its categories, and an
English twin for each.
"""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from typing import Any

from qwen_jax.data.chat.prompts import prompt_of
from qwen_jax.data.chat.render import Turn
from qwen_jax.data.chat.rows import Counts, Fields, read_usable
from qwen_jax.errors import DataError
from qwen_jax.utils.jsonl import parse_line

CATEGORIES = {  # report 3.3, Figure 4; the numbers are ours
    "knowledge": 60,
    "language understanding": 50,
    "creative writing": 100,
    "math": 45,
    "coding": 45,
}
OWN_SETS = {"chinese300": "zh", "english300": "en"}  # name for --prompts -> language


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt to which models answer.

    Attributes:
      turns: the conversation; the last turn is the user's.
      reference: a reference answer that raters see; "" if there is none.
      where: file and row.
      columns: the row as it is in the file, for reward functions.
    """

    id: str
    category: str
    turns: tuple[Turn, ...]
    reference: str = ""
    where: str = dataclasses.field(default="", compare=False)
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def row(self) -> dict[str, Any]:
        """Returns the question as a row of a prompt file."""
        messages = [{"role": role, "content": text} for role, text in self.turns]
        return {"id": self.id, "category": self.category, "messages": messages} | (
            {"reference": self.reference} if self.reference else {}
        )


def instructions() -> list[dict[str, str]]:
    """Returns our 300 instructions: rows of id, category, zh and en."""
    folder = resources.files("qwen_jax.evaluate.pairwise").joinpath("data")
    rows = []
    for category in CATEGORIES:
        name = f"instructions_{category.replace(' ', '_')}.jsonl"
        lines = folder.joinpath(name).read_text(encoding="utf-8").splitlines()
        rows += [
            parse_line(line.encode(), f"{name} line {number}")
            for number, line in enumerate(lines, 1)
        ]
    return rows


def read_questions(
    source: str | os.PathLike, counts: Counts, *, columns: Collection[str] | None = ()
) -> list[Question]:
    """Returns the questions of a file of prompts, or of one of our own sets.

    Args:
      source: "chinese300", "english300", or a file of prompts in any of the chat formats. "id",
        "category" and "reference" of a row are used. Without an id, it is a hash of the prompt.
      counts: receives the numbers of kept and skipped rows.
      columns: keys of the rows that the caller reads, so that they are not counted as unread; None:
        all.

    Raises:
      DataError: the file is missing, damaged or in an unknown format, or two rows have one id.
    """
    if source in OWN_SETS:
        language = OWN_SETS[str(source)]
        questions = [
            Question(row["id"], row["category"], (("user", row[language]),), "", row["id"], row)
            for row in instructions()
        ]
        counts.kept += len(questions)
        return questions
    first: dict[str, str] = {}
    questions = list(_read(source, counts, columns))
    for question in questions:
        if question.id in first:
            raise DataError(
                f"the id {question.id!r} (or the prompt) is also that of {first[question.id]}.",
                question.where,
                "remove one of the rows, or give each its own id.",
            )
        first[question.id] = question.where
    return questions


def _read(
    path: str | os.PathLike, counts: Counts, columns: Collection[str] | None
) -> Iterator[Question]:
    def parse(fields: Fields, row: dict[str, Any]) -> list[Question]:
        for key in row if columns is None else columns:
            fields.take(key)
        named, category, reference = map(fields.take, ("id", "category", "reference"))
        turns = prompt_of(fields, row)
        digest = hashlib.blake2b(repr(turns).encode("utf-8", "replace"), digest_size=6).hexdigest()
        return [
            Question(
                digest if named is None else str(named),
                "all" if category is None else str(category),
                tuple(turns),
                "" if reference is None else str(reference),
                fields.where,
                row,
            )
        ]

    return read_usable([path], counts, "prompts", parse)
