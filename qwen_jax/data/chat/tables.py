"""Reads rows of chat data from Parquet and CSV files, whose columns are the keys of the rows."""

import csv
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.utils.jsonl import read_rows

_BATCH = 1024  # rows of a Parquet file in memory at once
# Columns that are not texts. The cells of a CSV file have no types.
_FLAGS = ("label", "kto_tag", "weight", "train", "trainable", "labels", "choice")
_VALUES = {"true": True, "false": False, "1": 1, "0": 0, "1.0": 1, "0.0": 0}


def read_any(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, row) for each row of a .jsonl, .json, .parquet or .csv file.

    An empty cell of a CSV file is a missing key.

    Raises:
      DataError: the file is missing or corrupted, or pyarrow is missing for Parquet.
    """
    if pathlib.Path(path).is_dir():
        raise DataError(
            "this is a folder, not a file.", str(path), "pass its files, separated by commas."
        )
    suffix = pathlib.Path(path).suffix
    if suffix not in (".parquet", ".csv"):
        yield from read_rows(path)
        return
    try:
        yield from _parquet(path) if suffix == ".parquet" else _csv(path)
    except FileNotFoundError as error:
        raise DataError("the file does not exist.", str(path), "check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not UTF-8: {error}.", str(path), "save the file as UTF-8."
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(
            f"cannot read the file: {error}.",
            str(path),
            "check its permissions, or download it again.",
        ) from error


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
            for batch in parquet.ParquetFile(file).iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except pa.ArrowException as error:
        raise DataError(
            f"the file is not valid Parquet: {error}.", str(path), "download it again."
        ) from error


def _csv(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
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
    """Raises DataError for a header of one cell that another delimiter would split."""
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
