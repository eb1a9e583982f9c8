"""Reads rows of chat data from Parquet and CSV files, whose columns are the keys of the rows."""

import csv
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.utils import compressed
from qwen_jax.utils.files import open_regular
from qwen_jax.utils.jsonl import begins_with_rows, plain_suffix, read_rows

_BATCH = 1024  # rows of a Parquet file in memory at once
# Columns that are not texts. The cells of a CSV file have no types.
_FLAGS = ("label", "kto_tag", "weight", "train", "trainable", "labels", "choice")
_VALUES = {"true": True, "false": False, "1": 1, "0": 0, "1.0": 1, "0.0": 0}


def read_any(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, row) for each row of a .jsonl, .json, .parquet or .csv file.

    The content decides, except for CSV. An empty cell of a CSV file is a missing key.

    Raises:
      DataError: the file is missing or corrupted, or pyarrow is missing for Parquet.
    """
    if pathlib.Path(path).is_dir():
        raise DataError(
            "this is a folder, not a file.", str(path), "pass its files, separated by commas."
        )
    try:
        read = _reader(path)
    except compressed.ERRORS:
        read = read_rows  # which names the problem
    try:
        yield from read(path)
    except FileNotFoundError as error:
        raise DataError("the file does not exist.", str(path), "check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not UTF-8: {error}.", str(path), "save the file as UTF-8."
        ) from error
    except (*compressed.ERRORS, csv.Error) as error:
        raise DataError(
            f"cannot read the file: {error}.",
            str(path),
            "check its permissions, or download it again.",
        ) from error


def _reader(path: str | os.PathLike) -> Callable[..., Iterator[tuple[str, dict[str, Any]]]]:
    suffix = plain_suffix(path)
    with open_regular(path) as file:
        if compressed.decompressed(file).read(4) == b"PAR1":
            return _parquet
        file.seek(0)
        if begins_with_rows(file):
            return read_rows
    return {".parquet": _parquet, ".csv": _csv}.get(suffix, read_rows)


def _parquet(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            "pyarrow, which reads Parquet, is not installed.",
            str(path),
            'pip install "qwen_jax[data]".',
        ) from error
    number = 0
    try:
        with open(path, "rb") as file:
            packed = compressed.compression(file)
            opened = io.BytesIO(compressed.decompressed(file).read()) if packed else file
            for batch in parquet.ParquetFile(opened).iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", _as_text(row)
    except pa.ArrowException as error:
        raise DataError(
            f"the file is not valid Parquet: {error}.", str(path), "download it again."
        ) from error


def _as_text(value: Any) -> Any:
    """Returns a value with its bytes decoded: Spark writes texts as BINARY. Others stay bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    return list(map(_as_text, value)) if isinstance(value, list) else value


def _csv(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    with (
        open_regular(pathlib.Path(path)) as raw,
        io.TextIOWrapper(compressed.decompressed(raw), "utf-8-sig", newline="") as file,
    ):
        limit = csv.field_size_limit(sys.maxsize)  # 128 KiB by default
        try:
            reader = csv.DictReader(file, strict=True)
            _check_header(reader.fieldnames or (), str(path))
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    more = "more" if None in row else "fewer"
                    raise DataError(
                        f"the row has {more} cells than the header.",
                        where,
                        "put texts with commas or line breaks in double quotes.",
                    )
                yield where, {key: _cell(key, text) for key, text in row.items()}
        finally:
            csv.field_size_limit(limit)


def _check_header(names: Sequence[str], path: str) -> None:
    """Raises DataError for a repeated name, or one cell that another delimiter would split."""
    if repeated := [name for index, name in enumerate(names) if name in names[:index]]:
        raise DataError(
            f"two columns have the name {repeated[0][:60]!r}.", path, "rename or remove one."
        )
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and delimiter in names[0]:
            raise DataError(
                f"the columns are separated by {name}: the header is {names[0][:100]!r}.",
                path,
                "save the file with commas between the columns (in a spreadsheet: CSV UTF-8).",
            )


def _cell(key: str, text: str) -> Any:
    if key in _FLAGS:
        return _VALUES.get(text.strip().lower(), text) if text else None
    return text or None
