"""A file of JSON lines that only grows: killed at any moment, it is whole up to its last line.

FILE.run.json says what the lines were made from, so that no file mixes two ways of making them.
"""

import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.files import read_json, write_json
from qwen_jax.utils.jsonl import as_line, parse_line


def open_exclusive(path: pathlib.Path, shown: pathlib.Path | None = None) -> BinaryIO:
    """The file, to read and to append to, and nobody else's until it is closed.

    Args:
      shown: what errors call it; None: by its path.

    Raises:
      ConfigError: another process has it, or it cannot be written.
    """
    where = str(shown or path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")
    except OSError as error:
        raise ConfigError(
            f"cannot write: {error}.", where, "choose a folder that can be written."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            "another process writes it.", where, "wait for it, or name another file."
        ) from None
    return file


def check_same(
    found: dict[str, Any], wanted: dict[str, Any], path: pathlib.Path, record: pathlib.Path
) -> None:
    """Raises ConfigError, with the differences, unless both say the same of what a file was made
    from."""
    different = [
        f"{name}: {found.get(name)!r} then, {wanted.get(name)!r} now"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if different:
        raise ConfigError(
            f"the file was made otherwise: {'; '.join(different)}.",
            str(path),
            f"name another file, or delete this one and {record.name}.",
        )


def read_complete_lines(file: BinaryIO, shown: pathlib.Path) -> Iterator[tuple[int, int, Any]]:
    """(offset, length, row) of each line; one that was being written when a process died is cut
    off.

    Args:
      shown: what errors call the file.

    Raises:
      DataError: a line that is not JSON.
    """
    file.seek(0)
    offset = 0
    for number, raw in enumerate(file, 1):
        if not raw.endswith(b"\n"):
            file.truncate(offset)
            break
        yield offset, len(raw), parse_line(raw, f"{shown} line {number}")
        offset += len(raw)


def record_provenance(
    record: pathlib.Path,
    wanted: dict[str, Any],
    path: pathlib.Path,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Writes `record`, which says what the file or folder `path` is made from; what was begun
    before has to be made from the same, or ConfigError says what differs.

    Args:
      renamed: former -> current name of settings in older records; dots separate nested keys.
    """
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
    if record.exists():
        found = read_json(record)
        for former, name in (renamed or {}).items():
            _rename(found, former.split("."), name.split("."))
        check_same(found, wanted, path, record)
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, wanted)


def _rename(settings: dict[str, Any], former: list[str], name: list[str]) -> None:
    for key in former[:-1]:
        settings = settings.get(key, {})
    if former[-1] in settings:
        settings[name[-1]] = settings.pop(former[-1])


class AppendOnly:
    """Opens or begins the file; one process at a time.

    Args:
      made_from: what the lines depend on, as JSON. A file begun with another is refused; names that
        it does not have yet are added.

    Raises:
      ConfigError: the file belongs to another run, another process writes it, or cannot be written.
      DataError: a line that is not JSON.

    Attributes:
      rows: the objects that were there when it was opened.
    """

    def __init__(self, path: str | os.PathLike, made_from: dict[str, Any]):
        self.path = pathlib.Path(path)
        self._record = self.path.with_name(self.path.name + ".run.json")
        self._file = open_exclusive(self.path)
        try:
            if self._file.seek(0, os.SEEK_END) and not self._record.exists():
                raise ConfigError(
                    "the file is there, and not one of ours.", str(self.path), "name another file."
                )  # and not a byte of it was touched
            self.check_provenance(made_from)
            self.rows = self._read()
        except (ConfigError, DataError):
            self._file.close()
            raise

    def check_provenance(self, made_from: dict[str, Any]) -> None:
        """Compares with FILE.run.json, and writes there what is new.

        Raises:
          ConfigError: what both name differs, with the differences.
        """
        wanted = json.loads(json.dumps(made_from))  # tuples become lists, as in the file
        begun = self._record.exists()
        found = read_json(self._record) if begun else {}
        both = found.keys() & wanted.keys()
        check_same(
            {name: found[name] for name in both},
            {name: wanted[name] for name in both},
            self.path,
            self._record,
        )
        if not begun or not wanted.keys() <= found.keys():
            write_json(self._record, found | wanted)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line; it is with the system, and survives this process, when this returns."""
        self._file.write(as_line(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "AppendOnly":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _read(self) -> list[dict[str, Any]]:
        """What is there; a line that was being written when a process died is cut off."""
        return [row for _, _, row in read_complete_lines(self._file, self.path)]
