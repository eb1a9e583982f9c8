"""An append-only JSONL file. After a crash, it is valid up to its last complete line.

FILE.run.json records the inputs and settings of the lines, so a file never mixes two sets of them.
"""

import fcntl
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.files import naming_file, read_json, write_json
from qwen_jax.utils.jsonl import as_line, parse_line

# Of a record: name of a hash -> path of what it identifies. Paths are shown, and not compared.
PATHS = "paths"
_HASH = re.compile("[0-9a-f]{12,64}")


def open_exclusive(path: pathlib.Path, shown: pathlib.Path | None = None) -> BinaryIO:
    """Opens the file for reading and appending, and locks it against other processes until closed.

    Args:
      shown: the path to print in error messages; None: `path`.

    Raises:
      ConfigError: another process has locked it, or it cannot be written.
    """
    where = str(shown or path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")
    except OSError as error:
        raise ConfigError(
            f"cannot write the file: {error}.", where, "choose a path in a writable folder."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"another process is writing to the {_kind(shown or path)}.",
            where,
            f"wait for that process to finish, or use another {_kind(shown or path)}.",
        ) from None
    return file


def _kind(path: pathlib.Path) -> str:
    return "folder" if path.is_dir() else "file"


def check_same(
    found: dict[str, Any],
    wanted: dict[str, Any],
    path: pathlib.Path,
    record: pathlib.Path,
    fix: str | None = None,
) -> None:
    """Compares the recorded provenance of `path` with the current one.

    Args:
      record: the file with the recorded provenance, named in the error message.
      fix: what to do, in the error message; None: use another path, or delete this one.

    Raises:
      ConfigError: they differ; lists every difference.
    """
    different = list(differences(found, wanted))
    if different:
        raise ConfigError(
            f"the {_kind(path)} was made with different settings: {'; '.join(different)}.",
            str(path),
            fix
            or f"use another {_kind(path)}, or delete this one"
            + ("." if record.parent == path else f" and {record.name}."),
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yields a clause for each setting that differs, also within sections.

    A hash is shown as the path under PATHS whose content it identifies, or as "other contents".
    """
    paths = [side.get(PATHS) or {} for side in (found, wanted)]
    for name in sorted((found.keys() | wanted.keys()) - {PATHS}):
        was, now = found.get(name), wanted.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from differences(was, now, f"{at}{name}.")
        elif was != now:
            yield f"{at}{name}: {_difference(was, now, *(each.get(name) for each in paths))}"


def _difference(was: Any, now: Any, was_path: str | None, now_path: str | None) -> str:
    if was is not None and now is not None and now_path:
        if was_path and was_path != now_path:
            return f"was {was_path}, now {now_path}"
        return f"{now_path} has other contents than recorded"
    if _is_hash(was) and _is_hash(now):
        return f"other contents (hash was {str(was)[:8]}, now {str(now)[:8]})"
    return f"was {was!r}, now {now!r}"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def read_complete_lines(file: BinaryIO, shown: pathlib.Path) -> Iterator[tuple[int, int, Any]]:
    """Yields (offset, length, row) for each line.

    Removes an incomplete last line, which a killed process may leave.

    Args:
      shown: the path to print in error messages.

    Raises:
      DataError: a line is not JSON.
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
    fix: str | None = None,
) -> None:
    """Writes the inputs and settings of the file or folder `path` to `record`.

    Args:
      renamed: former -> current names of settings in older records; dots separate nested keys.
      fix: as in `check_same`.

    Raises:
      ConfigError: the record exists and differs; lists every difference.
    """
    wanted = json.loads(json.dumps(wanted))  # converts tuples to lists, as in the file
    if record.exists():
        found = read_json(record, finite=False)  # ranges may be unlimited
        for former, name in (renamed or {}).items():
            _rename(found, former.split("."), name.split("."))
        check_same(found, wanted, path, record, fix)
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, wanted)


def _rename(settings: dict[str, Any], former: list[str], name: list[str]) -> None:
    for key in former[:-1]:
        settings = settings.get(key, {})
        if not isinstance(settings, dict):  # a damaged record, which the comparison will refuse
            return
    if former[-1] in settings:
        settings[name[-1]] = settings.pop(former[-1])


class AppendOnly:
    """A JSONL file that one process at a time opens or creates, and appends to.

    Args:
      provenance: JSON-serializable inputs and settings that the lines depend on. They must match
        those recorded for an existing file; new names are added to the record.

    Raises:
      ConfigError: the file belongs to another run, another process is writing to it, or it cannot
        be written.
      DataError: a line is not JSON.

    Attributes:
      rows: the objects in the file when it was opened.
    """

    def __init__(self, path: str | os.PathLike, provenance: dict[str, Any]):
        self.path = pathlib.Path(path)
        self._record = self.path.with_name(self.path.name + ".run.json")
        self._file = open_exclusive(self.path)
        try:
            if self._file.seek(0, os.SEEK_END) and not self._record.exists():
                raise ConfigError(
                    f"the file exists, but {self._record.name} does not, so another program may "
                    "have written it.",
                    str(self.path),
                    f"restore {self._record.name}, or use another file.",
                )
            self.check_provenance(provenance)
            self.rows = self._read()
        except (ConfigError, DataError):
            self._file.close()
            raise

    def check_provenance(self, provenance: dict[str, Any]) -> None:
        """Compares `provenance` with FILE.run.json, and adds new names to the file.

        Raises:
          ConfigError: a name has different values in the two; lists every difference.
        """
        wanted = json.loads(json.dumps(provenance))  # converts tuples to lists, as in the file
        exists = self._record.exists()
        found = read_json(self._record, finite=False) if exists else {}
        both = found.keys() & wanted.keys() | {PATHS}
        old, new = ({k: v for k, v in side.items() if k in both} for side in (found, wanted))
        check_same(old, new, self.path, self._record)
        if not exists or not wanted.keys() <= found.keys():
            write_json(self._record, found | wanted)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line and flushes it to the operating system.

        The line survives a crash of this process.
        """
        with naming_file(self.path):
            self._file.write(as_line(row))
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "AppendOnly":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _read(self) -> list[dict[str, Any]]:
        """Reads the existing rows; removes an incomplete last line."""
        return [row for _, _, row in read_complete_lines(self._file, self.path)]
