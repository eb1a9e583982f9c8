"""Multiple choice with lettered lines: the files and prompts of MMLU, C-Eval and CMMLU."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count, csv_rows
from qwen_jax.evaluate.task import Example, Questions

LETTERS = "ABCD"


def lines(example: Example) -> str:
    """Returns the four choices, a line each."""
    return "".join(f"{letter}. {example.fields[letter]}\n" for letter in LETTERS)


def spaced(example: Example) -> tuple[str, ...]:
    """Returns the letters as continuations after a space."""
    return tuple(f" {letter}" for letter in LETTERS)


def lm_eval_prompt(
    description: str, answer: str, example: Example, shots: Sequence[Example]
) -> str:
    """Returns a prompt of lm-eval's: a description, worked examples, and the question.

    Args:
      answer: what stands before a letter.
    """

    def block(one: Example) -> str:
        return f"{one.fields['question'].strip()}\n{lines(one)}{answer}"

    worked = "".join(f"{block(one)} {one.answer}\n\n" for one in shots)
    return description + worked + block(example)


def names_of(text: str) -> dict[str, str]:
    """Returns subject -> its name in Chinese, from words SUBJECT=NAME."""
    return dict(word.split("=") for word in text.split())


def name_of(subject: str, names: Mapping[str, str]) -> str:
    """Returns the name of a subject in a prompt.

    Raises:
      DataError: the protocol has no prompt for this subject.
    """
    if subject not in names:
        raise DataError(
            f"the protocol lm_eval has no description of {subject!r}.",
            "--data",
            "download the file again, or leave @lm_eval out in --tasks.",
        )
    return names[subject]


def read_table(
    members: Mapping[str, bytes],
    name: str,
    subject: str,
    *,
    archive: str = "",
    columns: Sequence[str] | None = None,
    question: str = "question",
    answer: str = "answer",
) -> tuple[Example, ...]:
    """Returns the questions of a CSV file of an archive.

    Args:
      name: the file's path in the archive.
      archive: its name, for errors; "": that of the file.
      columns: the names of the columns, if the file has no header.
      question, answer: the columns of the question and of the right letter.

    Raises:
      DataError: the file is missing, or a row has no right letter or too few columns.
    """
    if name not in members:
        raise DataError(f"the archive has no {name}.", archive or name, "download it again.")
    header, rows = columns, csv_rows(members[name], name)
    if header is None:
        header, rows = rows[0], rows[1:]
    found = []
    for index, row in enumerate(row for row in rows if row):
        fields = dict(zip(header, row, strict=False))
        missing = [key for key in (question, *LETTERS, answer) if key not in fields]
        if missing or fields[answer] not in LETTERS or len(row) > len(header):
            raise DataError(
                f"no {', '.join(missing)}." if missing else f"the answer is {fields[answer]!r}.",
                f"{name} row {index + 1}",
                "download the file again.",
            )
        fields["question"] = fields[question]
        found.append(Example(index, fields, fields[answer], subject))
    return tuple(found)


def read_archive(
    data: DataFolders, name: str, *, test: str, dev: str, count: int, **columns: Any
) -> Questions:
    """Returns the questions of all subjects, and the worked examples of each.

    Args:
      name: the zip file.
      test, dev: path of a subject's file in it, with {} for the subject's name.
      count: questions of the published file.
      columns: as in read_table.
    """
    members = data.archive(name)
    folder, _, ending = test.partition("/{}")
    found: list[Example] = []
    shots = {}
    for subject in subjects(members, folder, ending):
        found += read_table(members, test.format(subject), subject, archive=name, **columns)
        shots[subject] = read_table(members, dev.format(subject), subject, archive=name, **columns)
    check_count(len(found), count, "questions", name)
    return Questions(tuple(found), shots)


def subjects(members: Iterable[str], folder: str, ending: str) -> list[str]:
    """Returns the names of a folder's CSV files without their ending, sorted."""
    prefix = f"{folder}/"
    return sorted(
        name[len(prefix) : -len(ending)]
        for name in members
        if name.startswith(prefix) and name.endswith(ending)
    )
