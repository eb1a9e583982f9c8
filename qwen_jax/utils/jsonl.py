"""Files of JSON rows: lists and lines, gzipped or not. Each row is read with its place."""

import gzip
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

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


def names_of(paths: Sequence[str | os.PathLike]) -> list[str]:
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


def read_rows(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) for each object of a .json list or a .jsonl file, .gz or not.

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
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for place, row in (_items if kind == ".json" else _lines)(file, path):
                if not isinstance(row, dict):
                    raise DataError(
                        f"{str(row)[:60]!r} is not an object.", place, "each row is a JSON object."
                    )
                yield place, row
    except FileNotFoundError as error:
        raise DataError("there is no such file.", str(path), "check the path.") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}.", str(path), "copy it again.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}.", str(path), "mend or write it again.") from error


def _items(file, path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    rows = json.load(file)
    if not isinstance(rows, list):
        raise DataError("the file holds no list.", str(path), "write a list of objects.")
    for number, row in enumerate(rows):
        yield f"{path}[{number}]", row


def _lines(file, path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"not a line of JSON: {error}.",
                place,
                "each line is one JSON object; a copy that broke off ends so.",
            ) from error
