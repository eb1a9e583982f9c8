"""A file of JSON lines that only grows: killed at any moment, it is whole up to its last line.

FILE.run.json says what the lines were made from, so that no file mixes two ways of making them.
"""

import fcntl
import json
import os
import pathlib
from typing import Any

from qwen_jax.errors import ConfigError, DataError


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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise ConfigError(f"cannot write: {error}.", str(self.path),
                              "choose a folder that can be written.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._file.seek(0, os.SEEK_END) and not self._record.exists():
                raise ConfigError("the file is there, and not one of ours.", str(self.path),
                                  "name another file.")  # and not a byte of it was touched
            self.check_made_from(made_from)
            self.rows = self._read()
        except BlockingIOError:
            self._file.close()
            raise ConfigError("another process writes it.", str(self.path),
                              "wait for it, or name another file.") from None
        except (ConfigError, DataError):
            self._file.close()
            raise

    def check_made_from(self, made_from: dict[str, Any]) -> None:
        """Compares with FILE.run.json, and writes there what is new.

        Raises:
          ConfigError: what both name differs, with the differences.
        """
        wanted = json.loads(json.dumps(made_from))  # tuples become lists, as in the file
        begun = self._record.exists()
        found = json.loads(self._record.read_text(encoding="utf-8")) if begun else {}
        different = [f"{name}: {found[name]!r} then, {wanted[name]!r} now"
                     for name in sorted(wanted) if name in found and found[name] != wanted[name]]
        if different:
            raise ConfigError(f"the file was made otherwise: {'; '.join(different)}.",
                              str(self.path), "name another one, or delete this one and "
                              f"{self._record.name}.")
        if not begun or not wanted.keys() <= found.keys():
            written = self._record.with_name(self._record.name + ".tmp")
            written.write_text(json.dumps(found | wanted, indent=1, ensure_ascii=False) + "\n",
                               encoding="utf-8")
            os.replace(written, self._record)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line; it is with the system, and survives this process, when this returns."""
        try:
            raw = json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 has no bytes for
            raw = json.dumps(row).encode("ascii")
        self._file.write(raw + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "AppendOnly":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _read(self) -> list[dict[str, Any]]:
        """What is there; a line that was being written when a process died is cut off."""
        self._file.seek(0)
        rows, offset = [], 0
        for number, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):
                self._file.truncate(offset)
                break
            try:
                rows.append(json.loads(raw))
            except ValueError as error:
                raise DataError(f"not a line of JSON: {error}.", f"{self.path} line {number}",
                                "mend or delete the line.") from error
            offset += len(raw)
        return rows
