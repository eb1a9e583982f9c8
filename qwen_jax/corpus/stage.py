"""The interface of a pipeline stage, a function from one table of documents to another.

A stage is a frozen dataclass of settings with `name`, `counted` and `__call__`. The call receives a
pyarrow.Table with at least the columns of `schema`, and returns its rows in the same order with
changed text or additional columns. It never drops a row: `reject` marks a row with the violated
rule and the measured value, and the pipeline moves it to the stage's `rejected` folder and counts
it.
Stages are sent to workers as their settings; a worker loads a stage's model or index once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from qwen_jax.corpus.arrow import pa

KINDS = ("web", "code", "documentation", "text", "instruction")
Verdict = tuple[str, float | str] | None  # (violated rule, value); None keeps the row


@functools.cache
def schema() -> pa.Schema:
    """Returns the schema of the columns that every row has."""
    return pa.schema(
        [
            # 32 hex digits: a hash of source, file and position in the file.
            ("id", pa.string()),
            ("text", pa.large_string()),
            ("source", pa.string()),  # name of the source
            ("kind", pa.string()),  # one of KINDS
            ("path", pa.string()),  # file and position in it: `a/b.jsonl@17`
            ("url", pa.string()),  # null if there is none
            # ISO 639-1 code or programming language; null if not identified yet.
            ("language", pa.string()),
            ("license", pa.string()),  # null if unknown
            # Documents of a group are all in training or all held out; mostly null.
            ("group", pa.string()),
            ("metadata", pa.string()),  # all other fields of the source, as a JSON object
        ]
    )


@functools.cache
def rejected_schema() -> pa.Schema:
    """Returns the schema of the columns that are added to rejected rows."""
    return pa.schema([("rejected_by", pa.string()), ("rejected_value", pa.string())])


class Stage(Protocol):
    """A pipeline stage; see the module docstring.

    `counted` lists columns whose summaries over the kept rows are part of a partition's counts:
    numbers and booleans are summed, strings tallied.
    """

    name: ClassVar[str]
    counted: ClassVar[tuple[str, ...]]

    def __call__(self, table: pa.Table) -> pa.Table: ...


def reject(table: pa.Table, verdicts: Sequence[Verdict]) -> pa.Table:
    """Returns the table with `rejected_by` and `rejected_value`; the first rejection of a row wins.

    Args:
      verdicts: one verdict per row.
    """
    rules = [verdict and verdict[0] for verdict in verdicts]
    values = [
        verdict and (verdict[1] if isinstance(verdict[1], str) else f"{verdict[1]:.6g}")
        for verdict in verdicts
    ]
    if "rejected_by" in table.column_names:
        earlier = zip(
            table["rejected_by"].to_pylist(), table["rejected_value"].to_pylist(), strict=True
        )
        pairs = [
            old if old[0] else new
            for old, new in zip(earlier, zip(rules, values, strict=True), strict=True)
        ]
        rules, values = [rule for rule, _ in pairs], [value for _, value in pairs]
        table = table.drop_columns(rejected_schema().names)
    for field, column in zip(rejected_schema(), (rules, values), strict=True):
        table = table.append_column(field, pa.array(column, field.type))
    return table


def reject_rows(table: pa.Table, rejects: Callable[[str, str | None, str], Verdict]) -> pa.Table:
    """Rejects rows by the verdict of `rejects` for each row's (text, language, kind)."""
    columns = (table[name].to_pylist() for name in ("text", "language", "kind"))
    return reject(table, [rejects(*row) for row in zip(*columns, strict=True)])


def set_column(table: pa.Table, name: str, values, type: pa.DataType | None = None) -> pa.Table:
    """Returns the table with a column added, or replaced if the name exists."""
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(values, type)
    index = table.schema.get_field_index(name)
    return table.append_column(name, values) if index < 0 else table.set_column(index, name, values)
