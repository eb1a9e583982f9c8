"""The tool `table`: reads CSV and JSONL files of the working folder; sums are exact."""

import csv
import json
import pathlib
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from qwen_jax.agent.tool import Limits, Result, Tool
from qwen_jax.agent.tools.folder import inside

_MAX_BYTES = 64 << 20
_MAX_ROWS = 50  # shown
_OPERATIONS = ("head", "sum", "mean", "min", "max", "count", "group")
_CONDITIONS = ("=", "!=", "<", "<=", ">", ">=", "contains")


class _Refused(Exception):
    """Why a table cannot be read so; the message is for the model."""


def table(folder: str | pathlib.Path) -> Tool:
    """Returns the tool, which reads files of one folder."""
    root = pathlib.Path(folder)

    def run(arguments: dict[str, Any], limits: Limits) -> Result:
        try:
            return Result(answer(inside(root, arguments["file"]), arguments))
        except (_Refused, OSError, UnicodeDecodeError, csv.Error) as error:
            return Result(f"Error: {error}.", is_error=True)

    return Tool(
        "table",
        "Reads a CSV, TSV or JSONL file: its first rows (head), the exact sum, mean, min, max or "
        "count of a column, or the sum of a column for each value of another one (group). "
        "`where` keeps only the rows that fit.",
        run,
        {
            "type": "object",
            "properties": {
                "file": {"type": "string", "description": "name of the file"},
                "operation": {"enum": list(_OPERATIONS)},
                "column": {"type": "string", "description": "column to compute with"},
                "by": {"type": "string", "description": "for group: the column of the groups"},
                "where": {
                    "type": "object",
                    "description": "keep rows whose column fits the value",
                    "properties": {
                        "column": {"type": "string"},
                        "is": {"enum": list(_CONDITIONS)},
                        "value": {"type": ["string", "number"]},
                    },
                    "required": ["column", "is", "value"],
                    "additionalProperties": False,
                },
                "rows": {"type": "integer", "minimum": 1, "maximum": _MAX_ROWS},
            },
            "required": ["file", "operation"],
            "additionalProperties": False,
        },
        "读取 CSV、TSV 或 JSONL 文件:前几行(head),某列的精确和、均值、最小值、最大值或个数,"
        "或按另一列分组求和(group)。where 只保留符合条件的行。",
    )


def answer(path: pathlib.Path, arguments: dict[str, Any]) -> str:
    """Returns what an operation gives, as text."""
    if path.stat().st_size > _MAX_BYTES:
        raise _Refused(f"the file has more than {_MAX_BYTES >> 20} MB")
    columns, rows = _read(path)
    if where := arguments.get("where"):
        _check_column(where["column"], columns)
        rows = [row for row in rows if _fits(row.get(where["column"], ""), where)]
    operation, column = arguments["operation"], arguments.get("column")
    if operation == "head":
        return _head(columns, rows, arguments.get("rows", 5))
    if operation == "count" and column is None:
        return f"{len(rows)} rows"
    if column is None:
        raise _Refused(f"{operation} needs a column; the columns are {', '.join(columns)}")
    _check_column(column, columns)
    if operation == "group":
        if (by := arguments.get("by")) is None:
            raise _Refused("group needs `by`, the column of the groups")
        _check_column(by, columns)
        return _groups(rows, column, by)
    numbers, others = _numbers(row.get(column, "") for row in rows)
    note = f" ({others} of {len(rows)} cells are not numbers and are left out)" if others else ""
    if operation == "count":
        return f"{len(numbers)} numbers{note}"
    if not numbers:
        raise _Refused(f"the column {column} has no numbers in these rows")
    value = {
        "sum": lambda: sum(numbers, Fraction(0)),
        "mean": lambda: sum(numbers, Fraction(0)) / len(numbers),
        "min": lambda: min(numbers),
        "max": lambda: max(numbers),
    }[operation]()
    return f"{operation} of {column} over {len(numbers)} rows: {_shown(value)}{note}"


def _read(path: pathlib.Path) -> tuple[list[str], list[dict[str, str]]]:
    if path.suffix == ".jsonl":
        rows = list(_json_rows(path))
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return columns, rows
    if path.suffix not in (".csv", ".tsv"):
        raise _Refused(f"{path.name} is not a .csv, .tsv or .jsonl file")
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        columns = [name.strip() for name in next(reader, [])]
        if not columns:
            raise _Refused("the file is empty")
        rows = []
        for row in reader:
            if len(row) > len(columns):
                raise _Refused(
                    f"line {reader.line_num} has {len(row)} cells for {len(columns)} columns"
                )
            if row:
                rows.append(dict(zip(columns, row, strict=False)))
    return columns, rows


def _json_rows(path: pathlib.Path) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise _Refused(f"line {number} is not JSON") from None
            if not isinstance(row, dict):
                raise _Refused(f"line {number} is not an object")
            yield {key: _cell(value) for key, value in row.items()}


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_column(column: str, columns: list[str]) -> None:
    if column not in columns:
        raise _Refused(f"there is no column {column!r}; the columns are {', '.join(columns)}")


def _number(text: str) -> Fraction | None:
    """Returns the number of a cell; commas between thousands are read."""
    plain = text.strip().replace(",", "").replace(" ", "")
    if not plain or len(plain) > 60 or plain[-1] not in "0123456789.":
        return None
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    if not value.is_finite() or abs(value.adjusted()) > 300:
        return None
    return Fraction(value)


def _numbers(cells) -> tuple[list[Fraction], int]:
    found, others = [], 0
    for cell in cells:
        number = _number(cell)
        if number is None:
            others += 1
        else:
            found.append(number)
    return found, others


def _fits(cell: str, where: dict[str, Any]) -> bool:
    wanted, how = _cell(where["value"]), where["is"]
    if how == "contains":
        return wanted.lower() in cell.lower()
    left, right = _number(cell), _number(wanted)
    if left is None or right is None:
        if how in ("=", "!="):
            return (cell.strip() == wanted.strip()) == (how == "=")
        raise _Refused(f"{cell[:40]!r} {how} {wanted[:40]!r} compares what are not two numbers")
    return {
        "=": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }[how]


def _groups(rows: list[dict[str, str]], column: str, by: str) -> str:
    sums: dict[str, Fraction] = {}
    others = 0
    for row in rows:
        number = _number(row.get(column, ""))
        if number is None:
            others += 1
            continue
        name = row.get(by, "")
        sums[name] = sums.get(name, Fraction(0)) + number
    lines = [f"{name}: {_shown(value)}" for name, value in list(sums.items())[:_MAX_ROWS]]
    if len(sums) > _MAX_ROWS:
        lines.append(f"... and {len(sums) - _MAX_ROWS} more groups")
    if others:
        lines.append(f"({others} of {len(rows)} cells are not numbers and are left out)")
    return f"sum of {column} by {by}:\n" + "\n".join(lines)


def _head(columns: list[str], rows: list[dict[str, str]], count: int) -> str:
    lines = [",".join(columns)]
    lines += [",".join(row.get(name, "") for name in columns) for row in rows[:count]]
    return "\n".join([*lines, f"({min(count, len(rows))} of {len(rows)} rows)"])


def _shown(value: Fraction) -> str:
    """Returns a number as an exact decimal, or to 12 digits if that does not end."""
    places = 0
    while places < 30 and (value * 10**places).denominator != 1:
        places += 1
    if (value * 10**places).denominator != 1:
        return f"≈ {float(value):.12g}"
    scaled = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{scaled[:-places]}.{scaled[-places:]}" if places else scaled)
