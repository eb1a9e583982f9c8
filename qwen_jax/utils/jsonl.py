"""Files of JSON rows: lists and lines, gzipped or not. Each row is read with its place."""

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
    """One row of a .jsonl file, its line end included."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 has no bytes for
        return json.dumps(row).encode("ascii") + b"\n"


def write_rows(path: pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes a .jsonl file, a row a line, whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.writelines(map(as_line, rows))


def unique_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """What to call each file: its name without suffixes, and as many of its folders as tell them
    apart.

    Raises:
      DataError: one file is named twice.
    """
    parts = [(*(path := pathlib.Path(p)).parts[:-1], path.name.partition(".")[0]) for p in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise DataError(
        f"a file is named twice: {', '.join(map(str, paths))}.",
        "the list of files",
        "name each once.",
    )


def read_rows(
    path: str | os.PathLike, *, bad: list[DataError] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) for each object of a .json list or a .jsonl file, .gz or not.

    Args:
      bad: for the logs of runs. It receives an error for each line that cannot be read, and the
        line is skipped; the unfinished last line of a killed process is not an error. None: the
        first bad line raises.

    Raises:
      DataError: the file is missing, damaged, or holds something else than objects.
    """
    path = pathlib.Path(path)
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if kind not in (".json", ".jsonl"):
        raise DataError(
            f"{path.suffix or 'no suffix'} is not a kind of file that is read here.",
            str(path),
            "use .json (a list) or .jsonl (an object a line), also .gz.",
        )
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield from _items(file, path) if kind == ".json" else _lines(file, path, bad)
    except FileNotFoundError as error:
        raise DataError("there is no such file.", str(path), "check the path.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}.", str(path), "copy it again.") from error


def _items(
    file: BinaryIO | gzip.GzipFile, path: pathlib.Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"cannot be read: {error}.", str(path), "copy it again.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}.", str(path), "mend or write it again.") from error
    if not isinstance(rows, list):
        raise DataError("the file holds no list.", str(path), "write a list of objects.")
    for number, row in enumerate(rows):
        place = f"{path}[{number}]"
        yield place, _checked(row, place)


def _lines(
    file: BinaryIO | gzip.GzipFile, path: pathlib.Path, bad: list[DataError] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            row = _checked(parse_line(line, place), place)
        except DataError as error:
            if bad is None:
                raise
            if line.endswith(b"\n"):
                bad.append(error)
            continue
        yield place, row


def parse_line(line: bytes, place: str) -> Any:
    """What a line of a .jsonl file holds.

    Raises:
      DataError: it is not JSON in UTF-8.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"cannot be read: {error}.", place, "write UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not a line of JSON: {error}.",
            place,
            "each line is one JSON object; a copy that broke off ends so.",
        ) from error


def _checked(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{str(row)[:60]!r} is not an object.", place, "each row is a JSON object.")
    return row
