"""What a stage of the data plan is: a function from a table of documents to such a table.

A stage is a frozen dataclass of settings with `name`, `counted` and a `__call__` that gets a
pyarrow.Table with at least the columns of `schema` and returns its rows in their order with other
text or more columns. It never takes a row away: `reject` says of a row which rule and which value
reject it, and the plan moves it to the stage's `rejected` folder and counts it. What a stage loads
(a model, an index) it loads in the worker, once: stages travel to workers as their settings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from qwen_jax.corpus.arrow import pa

KINDS = ("web", "code", "documentation", "text", "instruction")
Verdict = tuple[str, float | str] | None  # (rule, value that broke it); None: the row is kept


@functools.cache
def schema() -> pa.Schema:
    """The columns that every row has."""
    return pa.schema(
        [
            # 32 hex digits: a hash of source, file within it and place in the file.
            ("id", pa.string()),
            ("text", pa.large_string()),
            ("source", pa.string()),  # name of the source in the recipe
            ("kind", pa.string()),  # one of KINDS
            ("path", pa.string()),  # file and place in it: `a/b.jsonl:17`
            ("url", pa.string()),  # null where there is none
            # ISO 639-1, a programming language, or null before it is known.
            ("language", pa.string()),
            ("license", pa.string()),  # null where it is not known
            # Of documents never split between training and held out; mostly null.
            ("group", pa.string()),
            ("metadata", pa.string()),  # whatever else the source said, as a JSON object
        ]
    )


@functools.cache
def rejected_schema() -> pa.Schema:
    """The columns of a row that was rejected."""
    return pa.schema([("rejected_by", pa.string()), ("rejected_value", pa.string())])


class Stage(Protocol):
    """See above. `counted` names columns whose sums (numbers, booleans) or tallies (strings) go,
    of the kept rows, into the counts of every partition."""

    name: ClassVar[str]
    counted: ClassVar[tuple[str, ...]]

    def __call__(self, table: pa.Table) -> pa.Table: ...


def reject(table: pa.Table, verdicts: Sequence[Verdict]) -> pa.Table:
    """The table with `rejected_by` and `rejected_value`; a row that was rejected before stays so.

    Args:
      verdicts: one for each row.
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
    """`reject` by a function of (text, language, kind) of one row."""
    columns = (table[name].to_pylist() for name in ("text", "language", "kind"))
    return reject(table, [rejects(*row) for row in zip(*columns, strict=True)])


def set_column(table: pa.Table, name: str, values, type: pa.DataType | None = None) -> pa.Table:
    """The table with a column added, or in the place of the one of this name."""
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(values, type)
    index = table.schema.get_field_index(name)
    return table.append_column(name, values) if index < 0 else table.set_column(index, name, values)
