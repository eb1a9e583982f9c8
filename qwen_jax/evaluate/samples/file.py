"""The file of a task's samples: resumed after a kill, refused if it is damaged or was changed."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate import provenance
from qwen_jax.evaluate.prompts.questions import Work, hash_of
from qwen_jax.evaluate.samples import sealed
from qwen_jax.utils.append_only import AppendOnly, differences
from qwen_jax.utils.files import read_json
from qwen_jax.utils.jsonl import read_rows, write_rows


class SamplesFile:
    """The file samples/TASK.jsonl, and samples/TASK.jsonl.partial until all of them are there.

    Raises:
      ConfigError: the file belongs to another evaluation, or another process writes to it.
      DataError: a line is damaged, or a sample was changed; names it.
    """

    def __init__(self, work: Work, folder: pathlib.Path, identity: Mapping[str, Any]):
        key = work.task.key
        self._work, self._path = work, folder / "samples" / f"{key}.jsonl"
        wanted = {**identity, "task": key, "prompts": hash_of(work)}
        wanted = json.loads(json.dumps(wanted | {"grader": provenance.grader(work.task)}))
        self._evaluation = sealed.evaluation(wanted)
        path = self._path.with_name(f"{key}.jsonl.partial")
        self._record = path.with_name(f"{path.name}.run.json")
        self._check_record(key, self._record, wanted)
        try:
            self._partial = AppendOnly(path, wanted)
        except DataError as error:
            raise self._damaged(error) from error
        try:
            rows = [*self._finished(), *self._checked(path, self._partial.rows)]
        except DataError:
            self._partial.close()
            raise
        # An error is tried again.
        self._done = {row.get("id"): row for row in rows if "error" not in row}

    @property
    def is_empty(self) -> bool:
        return not self._done

    def remove(self) -> None:
        """Deletes a file without samples, and the record of its settings."""
        self._record.unlink(missing_ok=True)
        self._partial.path.unlink(missing_ok=True)

    def left(self) -> list[bool]:
        """Returns whether each example has no sample yet."""
        return [one.id not in self._done for one in self._work.sampled]

    def add(self, sample: dict[str, Any]) -> None:
        sample = sealed.seal(sample, self._evaluation)
        if "error" not in sample:
            self._partial.add(sample)
        self._done[sample["id"]] = sample

    def finish(self) -> list[dict[str, Any]]:
        """Writes the samples in order, and returns them.

        The other file is deleted: its order depends on when the evaluation was killed.
        """
        ordered = [self._done[one.id] for one in self._work.sampled]
        write_rows(self._path, ordered)
        self._partial.path.unlink()
        return ordered

    def __enter__(self) -> "SamplesFile":
        return self

    def __exit__(self, *_) -> None:
        self._partial.close()

    @property
    def _fix(self) -> str:
        return (
            "the evaluation wrote this file: restore it, or delete the line, and the same command "
            f"scores that example again; to score all of them again, delete {self._path}*."
        )

    def _check_record(self, key: str, record: pathlib.Path, wanted: Mapping[str, Any]) -> None:
        if self._path.exists() and not record.exists():
            raise ConfigError(
                f"the file exists, but {record.name} does not, so it may be of another evaluation.",
                str(self._path),
                f"restore {record.name}, or use another --output.",
            )
        if record.exists() and (different := list(differences(read_json(record), wanted))):
            raise ConfigError(
                f"{key} has samples with other settings: {'; '.join(different)}.",
                str(self._path),
                f"use another --output, or delete {self._path}*.",
            )

    def _finished(self) -> Iterator[dict[str, Any]]:
        """Yields the samples of a task that ended."""
        if not self._path.exists():
            return
        try:
            for where, row in read_rows(self._path):
                sealed.check(row, where, self._fix, self._evaluation)
                yield row
        except DataError as error:
            raise self._damaged(error) from error

    def _checked(self, path: pathlib.Path, rows: list[Any]) -> Iterator[dict[str, Any]]:
        """Yields the samples of a task that was killed."""
        for number, row in enumerate(rows, 1):
            where = f"{path} line {number}"
            if not isinstance(row, dict):
                raise DataError(f"{str(row)[:60]!r} is not a sample.", where, self._fix)
            sealed.check(row, where, self._fix, self._evaluation)
            yield row

    def _damaged(self, error: DataError) -> DataError:
        return DataError(error.what, error.where, self._fix)
