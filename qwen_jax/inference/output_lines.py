"""The output file of a file of prompts: resumable, and checked before it is reused."""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.request import Request
from qwen_jax.utils.append_only import check_same, open_exclusive, read_complete_lines
from qwen_jax.utils.files import atomic_write, naming_file, read_json, write_json
from qwen_jax.utils.jsonl import parse_line


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the input, as an engine request."""

    number: int  # line number, from 1
    copied: dict[str, Any]  # "id" and the keys without a meaning, for the output line
    request: Request


class Output:
    """The output file, opened and locked for one process before anything is computed.

    Args:
      identity: everything that determines the completions. An existing file with a different
        identity is rejected.

    Raises:
      ConfigError: the file belongs to another run, another process is writing to it, or it is not
        writable.
    """

    def __init__(self, path: str | os.PathLike, identity: dict[str, Any]):
        self.path = pathlib.Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._record = self.path.with_name(self.path.name + ".run.json")
        identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        self._file = open_exclusive(self._partial, self.path)
        try:
            self._same_run(identity)
        except (ConfigError, OSError):
            self.close()
            raise
        self.complete = self.path.exists()
        # Line number -> (offset, length) in the partial file.
        self._spans: dict[int, tuple[int, int]] = {}
        try:
            self._read_spans()
        except DataError:
            self._file.close()
            raise

    @property
    def done(self) -> set[int]:
        """The numbers of the finished lines."""
        return set(self._spans)

    def add(self, line: Line, choices: list[dict[str, Any]]) -> None:
        """Appends a line's completions."""
        record = {"line": line.number, **line.copied, "answers": choices}
        raw = _encoded(record) + b"\n"
        offset = self._file.seek(0, os.SEEK_END)
        with naming_file(self._partial):
            self._file.write(raw)
            self._file.flush()
        self._spans[line.number] = offset, len(raw)

    def check(self, outline: Iterable[tuple[int, dict[str, Any], int]]) -> None:
        """Compares the existing lines with the lines of the input that they answer.

        Args:
          outline: of each line of the input, its number, what is copied, number of completions.

        Raises:
          DataError: a line does not belong to the input, for example because the file was edited;
            names the line.
        """
        if self.complete:
            for wanted, found in itertools.zip_longest(outline, self._finished_lines()):
                where, record = found or ("the end of the file", None)
                problem = "the input has fewer lines" if wanted is None else None
                if wanted is not None:
                    number, copied, n = wanted
                    problem = _problem(record, number, copied, n)
                    if found is None:
                        problem = f"line {number} of the input is missing"
                if problem:
                    raise self._changed(self.path, f"{where}: {problem}")
            return
        unknown = self.done
        for number, copied, n in outline:
            if number in self._spans:
                unknown.discard(number)
                offset, length = self._spans[number]
                self._file.seek(offset)
                record = json.loads(self._file.read(length))
                if problem := _problem(record, number, copied, n):
                    raise self._changed(self._partial, f"the answer to line {number}: {problem}")
        if unknown:
            raise self._changed(self._partial, f"the input has no line {min(unknown)}")

    def finish(self) -> None:
        """Writes the lines, in order, to the final file."""
        with atomic_write(self.path) as file:
            for _, (offset, length) in sorted(self._spans.items()):
                self._file.seek(offset)
                file.write(self._file.read(length))
        self.complete = True

    def close(self) -> None:
        """Closes the file; deletes a partial file that is empty or no longer needed."""
        empty = self._file.seek(0, os.SEEK_END) == 0
        if getattr(self, "complete", False) or empty:
            self._partial.unlink(missing_ok=True)
        self._file.close()

    def _same_run(self, identity: dict[str, Any]) -> None:
        if self._record.exists():
            check_same(read_json(self._record), identity, self.path, self._record)
        elif self.path.exists():
            raise ConfigError(
                f"the file exists, but {self._record.name} does not, so another program may have "
                "written it.",
                str(self.path),
                f"restore {self._record.name}, or choose another file.",
            )
        else:
            write_json(self._record, identity)

    def _read_spans(self) -> None:
        """Finds the finished lines; truncates a line that was only partially written."""
        lines = read_complete_lines(self._file, self._partial)
        for index, (offset, length, record) in enumerate(lines, 1):
            number = record.get("line") if isinstance(record, dict) else None
            if type(number) is not int or number in self._spans:
                raise self._changed(self._partial, f"line {index}: it repeats a line, or has none")
            self._spans[number] = offset, length

    def _finished_lines(self) -> Iterator[tuple[str, Any]]:
        """Yields (location, record) of the final file."""
        with open(self.path, "rb") as file:
            for number, raw in enumerate(file, 1):
                yield f"line {number}", parse_line(raw, f"{self.path} line {number}")

    def _changed(self, path: pathlib.Path, problem: str) -> DataError:
        return DataError(
            f"the file was changed after it was written, or is of another input: {problem}.",
            str(path),
            f"restore it, or delete it and {self._record.name} to start again.",
        )


def _problem(record: Any, number: int, copied: dict[str, Any], n: int) -> str | None:
    """Returns why an output line does not belong to a line of the input; None if it does."""
    if not isinstance(record, dict):
        return "it is not an object"
    found = {name: value for name, value in record.items() if name != "answers"}
    for name, value in _as_written({"line": number, **copied}).items():
        if name not in found or _text(found[name]) != _text(value):
            return f"{name} is {_text(found.get(name))[:80]}, the input has {_text(value)[:80]}"
    if more := found.keys() - copied.keys() - {"line"}:
        return f"the input does not have {', '.join(sorted(more))}"
    answers = record.get("answers")
    if not isinstance(answers, list) or len(answers) != n:
        return f"it does not have {n} answer{'s' * (n > 1)}"
    for answer in answers:
        if not (isinstance(answer, dict) and isinstance(answer.get("text"), str)):
            return "an answer has no text"
        if type(answer.get("tokens")) is not int or not isinstance(answer.get("finish"), str):
            return "an answer does not have tokens and finish"
    return None


def _as_written(record: dict[str, Any]) -> dict[str, Any]:
    return json.loads(_encoded(record))


def _encoded(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
