"""Rows of chat files, read so that no part of them is dropped silently.

A reader takes the keys that it understands. It uses their values, or skips the row with a reason.
The keys that no reader took are counted for each file.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from qwen_jax.data.chat.tables import read_any
from qwen_jax.errors import DataError

T = TypeVar("T")

_MAX_NAMED = 20  # maximum number of keys named for a file
_MEDIA = {  # words of a key, such as image_url, whose value cannot be given to the model
    **dict.fromkeys(("image", "images", "img", "imgs", "picture", "pictures"), "images"),
    **dict.fromkeys(("video", "videos"), "videos"),
    **dict.fromkeys(("audio", "audios"), "audio"),
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_UNUSABLE = {  # other keys whose meaning cannot be given to the model
    **dict.fromkeys(("choices", "options"), "choices next to a question are not supported"),
    **dict.fromkeys(
        ("documents", "document", "passages", "passage", "article"),
        "documents next to a prompt are not supported",
    ),
    **dict.fromkeys(
        ("attachments", "experimental_attachments"), "attached files cannot be read by this model"
    ),
    **dict.fromkeys(("tools", "functions"), "tools within a turn are not supported"),
    **dict.fromkeys(("system", "system_prompt"), "a system message within a turn is not supported"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "reasoning outside of a turn"),
    **dict.fromkeys(
        ("reasoning_details", "thoughts", "thought", "rationale", "chain_of_thought", "cot"),
        "thoughts in a form that is not supported",
    ),
}
_CHOICE = re.compile(r"(?:option|choice)_?[a-e1-5]|[A-E]")  # such as option_a, or the A of C-Eval


class Skipped(Exception):
    """Raised with the reason why a row is unusable for training."""


@dataclasses.dataclass
class Counts:
    """The numbers of rows of a dataset that were kept, changed and skipped, by reason."""

    kept: int = 0
    changed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)  # reason -> its first row
    # file -> how many of its kept rows have each key that was not read
    unread: dict[str, collections.Counter] = dataclasses.field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        self.skipped[reason] += 1
        self.examples.setdefault(reason, where)

    def change(self, reason: str, where: str) -> None:
        self.changed[reason] += 1
        self.examples.setdefault(reason, where)

    def __str__(self) -> str:
        parts = [f"{self.kept:,} kept"]
        for verb, counter in (("", self.changed), ("skipped: ", self.skipped)):
            parts += [
                f"{number:,} {verb}{reason} (first: {self.examples[reason]})"
                for reason, number in counter.most_common()
            ]
        for file, keys in self.unread.items():
            named = [f"{key} ({number:,})" for key, number in keys.most_common(_MAX_NAMED)]
            more = [f"and {len(keys) - _MAX_NAMED} more"] if len(keys) > _MAX_NAMED else []
            parts.append(f"keys of {file} that are not read: {', '.join(named + more)}")
        return "; ".join(parts)


class Fields:
    """A JSON object that knows which of its keys were taken.

    Null, which files with fixed columns write for a missing value, is a missing key.
    """

    def __init__(self, values: dict[str, Any], where: str):
        """
        Args:
          where: file and row, for error messages.
        """
        self.where = where
        self._values = {str(key): value for key, value in values.items() if value is not None}
        self._taken: set[str] = set()
        self._inner: list[tuple[str, Fields]] = []
        self._changes: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str) -> Any:
        """Returns the value of a key, None if it is missing, and marks the key as read."""
        self._taken.add(key)
        return self._values.get(key)

    def take_if(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """Takes a key whose value has the given type; otherwise returns None."""
        return self.take(key) if isinstance(self._values.get(key), kind) else None

    def untaken(self, keys: Iterable[str]) -> list[str]:
        """Returns those of the keys that say something and were not taken."""
        return [k for k in keys if k not in self._taken and _filled(self._values.get(k))]

    def first(self, keys: Iterable[str]) -> str | None:
        """Returns the first of the keys that is present."""
        return next((key for key in keys if key in self._values), None)

    def inner(self, name: str, values: dict[str, Any]) -> "Fields":
        """Returns an object within this one, whose keys are counted as NAME.KEY."""
        fields = Fields(values, self.where)
        self._inner.append((name, fields))
        return fields

    def change(self, reason: str) -> None:
        """Notes how the row was changed, to be counted if the row is kept."""
        if reason not in self.changes():
            self._changes.append(reason)

    def changes(self) -> list[str]:
        """Returns the noted changes."""
        return self._changes + [text for _, fields in self._inner for text in fields.changes()]

    def check_usable(self) -> None:
        """
        Raises:
          Skipped: a key that was not taken has a meaning that the model cannot be given.
        """
        for key, value in self._values.items():
            if key not in self._taken and _filled(value) and (reason := _unusable(key, value)):
                raise Skipped(reason)
        for _, fields in self._inner:
            fields.check_usable()

    def unread(self) -> set[str]:
        """Returns the keys with a value that were not taken, also those of inner objects."""
        keys = {
            key for key in self._values if key not in self._taken and _filled(self._values[key])
        }
        for name, fields in self._inner:
            keys |= {f"{name}.{key}" for key in fields.unread()}
        return keys


def cannot_read(media: str) -> Skipped:
    """Returns the error for a row with images, videos or audio."""
    return Skipped(f"{media} cannot be read by this model")


def _unusable(key: str, value: Any) -> str | None:
    """Returns why the meaning of a key cannot be given to the model; None if it can."""
    media = next((_MEDIA[w] for word in _WORD.findall(key) if (w := word.lower()) in _MEDIA), None)
    if media and value:  # False or 0: the row has none
        return str(cannot_read(media)) if key in _MEDIA else f"{cannot_read(media)} ({key})"
    if _CHOICE.fullmatch(key):
        return f"{_UNUSABLE['choices']} ({key})"
    return _UNUSABLE.get(key)


def _filled(value: Any) -> bool:
    """Whether a value says something; an empty text, list or object does not."""
    return value is not None and not (isinstance(value, (str, list, dict)) and not value)


def read_usable(
    paths: Iterable[str | os.PathLike],
    counts: Counts,
    what: str,
    parse: Callable[[Fields, dict[str, Any]], Iterable[T]],
) -> Iterator[T]:
    """Yields what `parse` makes of each row; counts what was kept, changed, skipped and not read.

    Args:
      what: the plural of what a row is, for error messages.
      parse: (fields, row) -> items; raises Skipped for an unusable row.

    Raises:
      DataError: a file is missing, corrupted or in an unknown format, or has no usable row.
    """
    for path in paths:
        before, unread = counts.kept, collections.Counter()
        for where, row in read_any(path):
            fields = Fields(row, where)
            try:
                items = list(parse(fields, row))
                fields.check_usable()
            except Skipped as reason:
                counts.skip(str(reason), where)
                continue
            for change in fields.changes():
                counts.change(change, where)
            unread.update(fields.unread())
            if unread:
                counts.unread[str(path)] = unread
            for item in items:
                counts.kept += 1
                yield item
        if counts.kept == before:
            raise nothing_usable(what, counts, path)


def nothing_usable(what: str, counts: Counts, path: str | os.PathLike) -> DataError:
    """Returns the error for a file without a usable row."""
    if not counts.skipped:
        return DataError(
            f"the file has no {what}: it is empty.", str(path), "check how it was written."
        )
    return DataError(
        f"no usable {what}: {counts}.",
        str(path),
        "fix the rows; the first row with each problem is listed.",
    )


def unknown_format(row: dict[str, Any], where: str, fix: str) -> DataError:
    """Returns the error for a row whose keys are those of no format."""
    return DataError(
        f"unknown format: the row has the keys {', '.join(map(str, row))}.", where, fix
    )
