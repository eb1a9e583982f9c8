"""Reads rows of the appendix's sets. One without a field is refused, with its file and number."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Example

LETTERS = "ABCDE"
_T = TypeVar("_T")


def numbered(data: DataFolders, *names: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file and row, object) of the first of the JSONL files `names` that exists."""
    name, _ = data.read(*names)
    for number, row in enumerate(data.json_lines(name), 1):
        yield f"{name} row {number}", row


def value(
    row: Mapping[str, Any], key: str, kind: type[_T], where: str, *, blank: bool = False
) -> _T:
    """Returns row[key].

    Args:
      blank: whether a text may be blank, as a choice may.

    Raises:
      DataError: the row does not have it, it is of another type, or it is a blank text.
    """
    found = row.get(key)
    if type(found) is not kind or (isinstance(found, str) and not found.strip() and not blank):
        raise malformed(f"{key} is {str(found)[:60]!r}, not a {kind.__name__} with content", where)
    return found


def texts(row: Mapping[str, Any], key: str, where: str) -> list[str]:
    """Returns row[key], a list of texts.

    Raises:
      DataError: it is not one, or it is empty.
    """
    found = value(row, key, list, where)
    if not found or not all(isinstance(one, str) for one in found):
        raise malformed(f"{key} is {str(found)[:60]!r}, not a list of texts", where)
    return found


def position(label: object, labels: Sequence[object], where: str) -> int:
    """Returns where the right answer is among `labels`.

    Raises:
      DataError: it is not there.
    """
    if label not in labels:
        raise malformed(f"the answer is {label!r}, which is not one of {list(labels)}", where)
    return labels.index(label)


def labels(data: DataFolders, name: str, allowed: Sequence[str], count: int) -> list[int]:
    """Returns the position of each line of a file of labels among `allowed`.

    Raises:
      DataError: a line is another, or there are not `count` of them.
    """
    lines = data.text(name).split()
    if len(lines) != count:
        raise malformed(f"{len(lines):,} labels for {count:,} questions", name)
    return [position(one, allowed, f"{name} row {n}") for n, one in enumerate(lines, 1)]


def choose(
    index: int, question: str, choices: Sequence[str], right: int, where: str, **fields: str
) -> Example:
    """Returns an example whose choices are fields A, B, ...

    Args:
      right: position of the right choice.
      where: file and row, for errors.
      fields: more columns.

    Raises:
      DataError: there are more choices than letters.
    """
    if len(choices) > len(LETTERS):
        raise malformed(f"it has {len(choices)} choices, not up to {len(LETTERS)}", where)
    lettered = dict(zip(LETTERS, choices, strict=False))
    return Example(index, {"question": question, **fields, **lettered}, LETTERS[right])


def choices(example: Example) -> tuple[str, ...]:
    """Returns the choices of an example as continuations of "Answer:"."""
    return tuple(f" {example.fields[one]}" for one in LETTERS if one in example.fields)


def malformed(what: str, where: str) -> DataError:
    return DataError(f"{what}.", where, "download the file again.")
