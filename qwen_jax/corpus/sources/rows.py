"""Makes the rows of the read stage: a document, or a rejection with its reason.

A row is a dict with `location` (the position in its file) and either `text` or `rejected_by` and
`rejected_value`; it may have further columns of stage.schema.
"""

from __future__ import annotations

import json
from typing import Any

from qwen_jax.corpus.arrow import pa

_COLUMNS = {
    "url": "url",
    "language": "language",
    "lang": "language",
    "license": "license",
    "group": "group",
}  # field of a row -> our column; the first field that is present wins


def rejected(location: str, rule: str, value: object = "", **columns) -> dict:
    """Returns a rejected row."""
    return {"location": location, "rejected_by": rule, "rejected_value": str(value), **columns}


def from_object(location: str, row: Any, field: str) -> dict:
    """Returns the row of a JSON object or of a row of Parquet, whose text is in `field`."""
    text = row.get(field) if isinstance(row, dict) else None
    if isinstance(text, bytes):  # a BINARY column of Parquet, as Spark writes
        text = _decoded(text)
    if isinstance(text, UnicodeDecodeError):
        return rejected(location, "not_utf8", text)
    if not isinstance(text, str):
        has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        return rejected(location, "no_text_field", has[:200])
    if not text.strip():
        return rejected(location, "no_text", len(text))
    columns: dict[str, str | None] = {"location": location, "text": text}
    del row[field]
    for name in () if _COLUMNS.keys().isdisjoint(row) else _COLUMNS:
        if isinstance(row.get(name), str | bytes) and _COLUMNS[name] not in columns:
            columns[_COLUMNS[name]] = _as_text(row.pop(name))
    try:
        columns["metadata"] = _as_json(row) if row else None
    except RecursionError as error:
        return rejected(location, "not_json", error)
    return columns


def column_values(column: pa.Array) -> list:
    """Returns the values of a Parquet column, with an error for each that Python cannot hold."""

    def value(item: pa.Scalar):
        try:
            return item.as_py()
        except (ValueError, OverflowError) as error:
            return error

    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return list(map(value, column))


def _decoded(value: bytes) -> str | UnicodeDecodeError:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        return error


def _as_text(value: object) -> str:
    """Returns a value of the metadata that JSON does not have, such as a date or bytes, as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


_as_json = json.JSONEncoder(default=_as_text).encode


def from_bytes(location: str, content: bytes) -> dict:
    """Returns the row of a UTF-8 text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return rejected(location, "not_utf8", f"{content[error.start]:#04x} at {error.start}")
    return (
        {"location": location, "text": text} if text.strip() else rejected(location, "no_text", 0)
    )


def replace_lone_surrogates(text: str) -> str:
    """Replaces lone surrogates, which JSON allows but UTF-8 does not, with U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
