"""Reads the items of test sets, which must not occur in training text. Report: 2.1, 3.1.

An item has one or more texts: its question with its choices, and its solution. Each format has a
reader; `FORMATS` maps file name patterns to readers.
"""

import csv
import fnmatch
import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from qwen_jax.errors import DataError
from qwen_jax.utils.files import files_in
from qwen_jax.utils.jsonl import read_rows


class TestItem(NamedTuple):
    """One text of one item."""

    test_set: str  # such as "gsm8k"
    item: str  # index or name of the item in the test set
    text: str

    __test__ = False  # keeps pytest from collecting the class


def read_test_sets(folder: str | os.PathLike) -> Iterator[TestItem]:
    """Yields the items of all files in a folder, in the order of file names.

    Raises:
      DataError: the folder is missing or empty, or a file has an unknown name or is corrupted.
    """
    folder = pathlib.Path(folder)
    files = [path for path in files_in(folder) if path.is_file()] if folder.exists() else []
    if not files:
        raise DataError("no test sets found.", str(folder), "pass a folder with test sets.")
    for path in files:
        name = path.name
        reader = next(
            (
                reader
                for pattern, reader in FORMATS.items()
                if fnmatch.fnmatch(
                    f"{path.parent.name}/{name}" if "/" in pattern else name, pattern
                )
            ),
            None,
        )
        if reader is None:
            raise DataError(
                f"no reader for {name}.",
                str(path),
                f"rename it to match one of {', '.join(FORMATS)}, move it out of the folder, or "
                "name the tasks that read the folder with --filters.test_tasks.",
            )
        try:
            yield from reader(path)
        except (KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"not in the expected format: {type(error).__name__} {error}.",
                str(path),
                "download the file again, or update its reader in corpus/filters/test_items.py.",
            ) from error


def _rows(
    test_set: str, *fields: str, key: str | None = None
) -> Callable[[pathlib.Path], Iterator[TestItem]]:
    """Returns a reader of JSON or JSONL rows; each field yields one text of the item."""

    def read(path: pathlib.Path) -> Iterator[TestItem]:
        for number, (_, row) in enumerate(read_rows(path)):
            for field in fields:
                # Calculator annotations of GSM8K are not part of the text.
                text = re.sub(r"<<[^<>]*>>", "", row[field])
                yield TestItem(test_set, str(row[key] if key else number), text)

    return read


def _mbpp(path: pathlib.Path) -> Iterator[TestItem]:
    for _, row in read_rows(path):
        for text in (row["text"], row["code"], "\n".join(row["test_list"])):
            yield TestItem("mbpp", str(row["task_id"]), text)


def _humanevalpack(path: pathlib.Path) -> Iterator[TestItem]:
    for _, row in read_rows(path):
        for field in ("prompt", "canonical_solution", "test"):
            yield TestItem(path.stem, row["task_id"], row[field])


def _math23k(path: pathlib.Path) -> Iterator[TestItem]:
    """Reads concatenated JSON objects."""
    text, decoder, offset = path.read_text(encoding="utf-8"), json.JSONDecoder(), 0
    while offset < len(text.rstrip()):
        blanks = re.compile(r"\s*").match(text, offset)
        row, offset = decoder.raw_decode(text, blanks.end() if blanks else offset)
        yield TestItem("math23k", row["id"], row["original_text"])


def _bbh(path: pathlib.Path) -> Iterator[TestItem]:
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))["examples"]):
        yield TestItem(f"bbh_{path.stem}", str(number), row["input"])


def _multiple_choice(path: pathlib.Path) -> Iterator[TestItem]:
    """Reads a zip of CSV files: MMLU's without a header, C-Eval's and CMMLU's with one."""
    test_set = path.stem
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".csv"))
        stems = [pathlib.PurePath(name).stem for name in names]
        for name, stem in zip(names, stems, strict=True):
            # CMMLU's files have the same names in dev/ and test/.
            file = stem if stems.count(stem) == 1 else name.removesuffix(".csv")
            rows = csv.reader(
                io.TextIOWrapper(archive.open(name), encoding="utf-8-sig", newline="")
            )
            first = 0  # column of the question; a header's, which has one before it
            for number, row in enumerate(rows):
                header = [column.lower() for column in row] if number == 0 else []
                if "question" in header:
                    first = header.index("question")
                    continue
                yield TestItem(test_set, f"{file}:{number}", "\n".join(row[first : first + 5]))


def _nothing(path: pathlib.Path) -> Iterator[TestItem]:
    return iter(())


FORMATS: dict[str, Callable[[pathlib.Path], Iterator[TestItem]]] = {
    "gsm8k*.jsonl": _rows("gsm8k", "question", "answer"),
    "math500*.jsonl": _rows("math", "problem", "solution"),
    "math401*.jsonl": _rows("math401", "query"),
    "math23k*.json": _math23k,
    "HumanEval.jsonl*": _rows("humaneval", "prompt", "canonical_solution", "test", key="task_id"),
    "humanevalpack_*.jsonl": _humanevalpack,
    "mbpp*.jsonl": _mbpp,
    "mmlu*.zip": _multiple_choice,
    "ceval*.zip": _multiple_choice,
    "cmmlu*.zip": _multiple_choice,
    "bbh/*.json": _bbh,
    **dict.fromkeys(  # published prompts, not items
        ("bbh_cot_prompts.json", "qwen_gsm8k_*shot.txt", "minerva_math_4shot.json"), _nothing
    ),
}
