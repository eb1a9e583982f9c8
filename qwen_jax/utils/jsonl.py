"""Reads and writes files of JSON rows: lists and lines; reads them compressed too.

Each row is read together with its location, for error messages.
"""

import codecs
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from qwen_jax.errors import DataError
from qwen_jax.utils import compressed
from qwen_jax.utils.files import atomic_write, open_regular
from qwen_jax.utils.json_text import check_depth, without_repeated_keys

_LINE_BYTES = 1 << 28  # a longer line is refused before it fills the memory

_FIRST_LINE = 1 << 24  # bytes; a longer line of a .json file belongs to a list
_ROWS = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\[\s*)?\{")  # how objects, or a list of them, begin


def as_line(row: Any) -> bytes:
    """Encodes one row of a .jsonl file, with a final newline."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # an unpaired surrogate, which UTF-8 cannot encode
        return json.dumps(row).encode("ascii") + b"\n"


def write_rows(path: pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes a .jsonl file atomically, one row per line; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.writelines(map(as_line, rows))


def unique_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Returns a unique name for each file.

    It is the file's name without suffixes, preceded by as many of its folders as needed.

    Raises:
      DataError: a file is listed twice.
    """
    parts = [(*(path := pathlib.Path(p)).parts[:-1], path.name.partition(".")[0]) for p in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise DataError(
        f"a file is listed twice: {', '.join(map(str, paths))}.",
        "the list of files",
        "list each file only once.",
    )


def read_rows(
    path: str | os.PathLike, *, bad: list[DataError] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, object) for each object in a .json or .jsonl file, optionally compressed.

    The content decides whether the file is a list or has one object per line. A file of another
    name is read if its content is one of these.

    Args:
      bad: a list that receives an error for each unreadable line, which is then skipped; used for
        the logs of runs. An incomplete last line, as a killed process leaves, is skipped without an
        error. None: the first unreadable line raises.

    Raises:
      DataError: the file is missing, corrupted, or contains anything other than objects.
    """
    path = pathlib.Path(path)
    kind = plain_suffix(path)
    try:
        with open_regular(path) as file:
            if kind not in (".json", ".jsonl", ".ndjson") and not begins_with_rows(file):
                raise DataError(
                    f"unsupported file extension {kind!r}, and the content is not JSON.",
                    str(path),
                    "use .json (a list) or .jsonl (one object per line), optionally followed by "
                    ".gz or .zst; files of conversations, pairs and prompts may also be .parquet "
                    "or .csv.",
                )
            is_list = _is_list(compressed.decompressed(file), kind)
            stream = compressed.decompressed(file)
            yield from _items(stream, path) if is_list else _lines(stream, path, bad)
    except FileNotFoundError as error:
        raise DataError("the file does not exist.", str(path), "check the path.") from error
    except compressed.ERRORS as error:
        raise DataError(
            f"cannot read the file: {error}.",
            str(path),
            "check its permissions, or download it again.",
        ) from error


def plain_suffix(path: str | os.PathLike) -> str:
    """Returns the suffix of a file's name in lowercase, without .gz and the like."""
    *before, last = ["", *(suffix.lower() for suffix in pathlib.Path(path).suffixes)]
    return before[-1] if before and before[-1] and last in compressed.SUFFIXES else last


def begins_with_rows(file: BinaryIO) -> bool:
    """Returns whether the content of a seekable file begins with a JSON object or a list of them.

    Raises:
      one of compressed.ERRORS: the file is damaged.
    """
    return _ROWS.match(compressed.decompressed(file).read(1 << 12)) is not None


def _is_list(file: BinaryIO, kind: str) -> bool:
    """Returns whether the file is to be parsed as a whole: it does not begin with a full row."""
    line = b""
    while not line.strip() and (line := file.readline(_FIRST_LINE)):
        line = line.removeprefix(codecs.BOM_UTF8)
    begin = line.strip()
    if kind in (".jsonl", ".ndjson"):
        return begin.startswith(b"[") or begin == b"{"
    try:
        row = json.loads(begin)
        return not (isinstance(row, dict) and row)
    except (ValueError, RecursionError):
        return True


def _items(file: BinaryIO, path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        raw = file.read()
        rows = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=without_repeated_keys)
        check_depth(rows, raw)
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not UTF-8: {error}.", str(path), "save the file as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the file is not valid JSON: {error}.",
            str(path),
            "write a list of objects, or one object per line without line breaks inside it; if the "
            "file is truncated, download it again.",
        ) from error
    if not isinstance(rows, list):
        raise DataError(
            "the file is not a JSON list.",
            str(path),
            "write a list of objects, or one object per line without line breaks inside it.",
        )
    for number, row in enumerate(rows):
        location = f"{path}[{number}]"
        yield location, _checked(row, location)


def _lines(
    file: BinaryIO, path: pathlib.Path, bad: list[DataError] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = iter(lambda: file.readline(_LINE_BYTES), b"")
    for number, line in enumerate(lines, 1):
        if len(line) == _LINE_BYTES:
            raise DataError(
                f"the line has more than {_LINE_BYTES:,} bytes.",
                f"{path} line {number}",
                "write one JSON object per line.",
            )
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
      DataError: the line is not UTF-8, not JSON, nested too deeply, or repeats a key.
    """
    try:
        row = json.loads(
            line.decode("utf-8").rstrip("\r\n"), object_pairs_hook=without_repeated_keys
        )
        check_depth(row, line)
        return row
    except UnicodeDecodeError as error:
        raise DataError(
            f"the line is not UTF-8: {error}.", location, "save the file as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):  # its line number is not that of the file
            reason = f"{error.msg} at column {error.pos + 1}"
        raise DataError(
            f"the line is not valid JSON: {reason}.",
            location,
            "write one JSON object per line; if the line is incomplete, the file may be truncated: "
            "restore it, or download it again.",
        ) from error


def _checked(row: Any, location: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{str(row)[:60]!r} is not a JSON object.", location, "write each row as a JSON object."
        )
    return row
