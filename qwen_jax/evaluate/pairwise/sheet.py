"""A sheet: questions with the answers of several models, as it is judged.

`answers.jsonl` is the sheet on disk, and the key of a blind page: it says which model wrote which
answer. The page has only the codes of answers.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise.questions import Question
from qwen_jax.utils.jsonl import read_rows, write_rows


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer of a model.

    Attributes:
      code: an opaque name, unique in the sheet; raters see nothing else.
      sampling: the settings that it was sampled with; empty if unknown.
      finish: "stop" if it is complete, "length" if it was cut at the maximum length, "" if unknown.
    """

    model: str
    text: str
    code: str = ""
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finish: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A question with its answers, of which there are two or more."""

    question: Question
    answers: tuple[Answer, ...]

    @functools.cached_property
    def codes(self) -> dict[str, Answer]:
        """Code -> answer."""
        return {answer.code: answer for answer in self.answers}


@dataclasses.dataclass(frozen=True)
class Sheet:
    """All questions with their answers.

    Attributes:
      page: a name that depends on all questions and answers, which votes carry.
    """

    entries: tuple[Entry, ...]
    page: str

    @functools.cached_property
    def by_id(self) -> dict[str, Entry]:
        """Question id -> entry."""
        return {entry.question.id: entry for entry in self.entries}

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of the answers."""
        answers = (answer for entry in self.entries for answer in entry.answers)
        return list(dict.fromkeys(answer.model for answer in answers))


def make_sheet(entries: Iterable[tuple[Question, Sequence[Answer]]], *, seed: int) -> Sheet:
    """Returns a sheet whose answers have codes.

    Args:
      seed: of the codes and of the orders in which raters see the answers.

    Raises:
      DataError: there are no questions, or a question has fewer than two answers.
    """
    made = []
    for question, answers in entries:
        if len(answers) < 2:
            raise DataError(
                f"question {question.id!r} has {len(answers)} answers.",
                question.where,
                "give two or more answers to each question.",
            )
        coded = (
            dataclasses.replace(answer, code=_digest(f"{seed}/{question.id}/{index}", 5))
            for index, answer in enumerate(answers)
        )
        made.append(Entry(question, tuple(coded)))
    if not made:
        raise DataError("there are no questions to judge.", "--prompts", "pass a file of prompts.")
    return Sheet(tuple(made), _page(made))


def write_sheet(sheet: Sheet, path: pathlib.Path) -> None:
    """Writes answers.jsonl, one question a line."""
    write_rows(
        path,
        (
            {
                "page": sheet.page,
                **entry.question.row(),
                "answers": [
                    {
                        "code": answer.code,
                        "model": answer.model,
                        "text": answer.text,
                        "finish": answer.finish,
                        "sampling": dict(answer.sampling),
                    }
                    for answer in entry.answers
                ],
            }
            for entry in sheet.entries
        ),
    )


def read_sheet(path: str | os.PathLike) -> Sheet:
    """Reads a file of `write_sheet`.

    Raises:
      DataError: the file is missing or damaged, or was changed after it was written.
    """
    entries, pages = [], set()
    for where, row in read_rows(path):
        try:
            turns = tuple((turn["role"], turn["content"]) for turn in row["messages"])
            question = Question(row["id"], row["category"], turns, row.get("reference", ""), where)
            answers = [Answer(**one) for one in row["answers"]]
            pages.add(row["page"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"not a row of judged answers: {type(error).__name__} {error}.",
                where,
                "restore the file, or run the command that made it again.",
            ) from error
        entries.append(Entry(question, tuple(answers)))
    if len(pages) != 1:
        raise DataError(
            f"it has rows of {len(pages)} pages.", str(path), "restore the file, or make it again."
        )
    if pages != {_page(entries)}:
        raise DataError(
            "questions or answers were changed after it was written.",
            str(path),
            "restore the file, or make it and its page again.",
        )
    return Sheet(tuple(entries), pages.pop())


def _page(entries: Sequence[Entry]) -> str:
    """Returns the name of a sheet; it depends on the seed through the codes."""
    content = [
        (
            entry.question.id,
            entry.question.turns,
            [(a.code, a.model, a.text) for a in entry.answers],
        )
        for entry in entries
    ]
    return _digest(repr(content), 8)


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=size).hexdigest()
