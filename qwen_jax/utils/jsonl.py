"""Files of JSON rows: .json lists and .jsonl lines, optionally gzipped.

Each row is read together with its location, for error messages.
"""

import codecs
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from qwen_jax.errors import DataError
from qwen_jax.utils.files import atomic_write


def as_line(row: Any) -> bytes:
    """Returns one row of a .jsonl file as bytes, with its line end."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # an unpaired surrogate, which UTF-8 cannot encode
        return json.dumps(row).encode("ascii") + b"\n"


def write_rows(path: pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes a .jsonl file atomically, one row per line; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.writelines(map(as_line, rows))


def unique_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Returns a unique name for each file: its name without suffixes, preceded by as many of its
    folders as needed.

    Raises:
      DataError: the list contains a file twice.
    """
    parts = [(*(path := pathlib.Path(p)).parts[:-1], path.name.partition(".")[0]) for p in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise DataError(
        f"a file is named twice: {', '.join(map(str, paths))}.",
        "the list of files",
        "name each file once.",
    )


def read_rows(
    path: str | os.PathLike, *, bad: list[DataError] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, object) for each object of a .json list or a .jsonl file, also .gz.

    Args:
      bad: for the logs of runs. Unreadable lines are skipped, and an error for each is appended
        here. The incomplete last line of a killed process is not an error. None: the first bad
        line raises.

    Raises:
      DataError: the file is missing, damaged, or contains anything but objects.
    """
    path = pathlib.Path(path)
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if kind not in (".json", ".jsonl"):
        raise DataError(
            f"{path.suffix or 'no suffix'} is not a supported kind of file.",
            str(path),
            "use .json (a list) or .jsonl (one object per line), optionally with .gz.",
        )
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield from _items(file, path) if kind == ".json" else _lines(file, path, bad)
    except FileNotFoundError as error:
        raise DataError("there is no such file.", str(path), "check the path.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"the file cannot be read: {error}.", str(path), "copy the file again."
        ) from error


def _items(
    file: BinaryIO | gzip.GzipFile, path: pathlib.Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file cannot be read: {error}.", str(path), "copy the file again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the file is not JSON: {error}.", str(path), "fix or rewrite the file."
        ) from error
    if not isinstance(rows, list):
        raise DataError("the file is not a JSON list.", str(path), "write a list of objects.")
    for number, row in enumerate(rows):
        location = f"{path}[{number}]"
        yield location, _checked(row, location)


def _lines(
    file: BinaryIO | gzip.GzipFile, path: pathlib.Path, bad: list[DataError] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        location = f"{path} line {number}"
        try:
            row = _checked(parse_line(line, location), location)
        except DataError as error:
            if bad is None:
                raise
            if line.endswith(b"\n"):
                bad.append(error)
            continue
        yield location, row


def parse_line(line: bytes, location: str) -> Any:
    """Parses a line of a .jsonl file.

    Args:
      location: file and line number, for error messages.

    Raises:
      DataError: the line is not JSON in UTF-8.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"the line cannot be read: {error}.", location, "write UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not a line of JSON: {error}.",
            location,
            "write one JSON object per line; an interrupted copy ends with an incomplete line.",
        ) from error


def _checked(row: Any, location: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{str(row)[:60]!r} is not an object.", location, "write each row as a JSON object."
        )
    return row
