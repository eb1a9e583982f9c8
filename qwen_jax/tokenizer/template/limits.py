"""Keeps a chat template, which is somebody else's program, from running forever or filling memory.

Jinja's sandbox keeps it from files and from our objects, but limits neither loops nor text. So a
loop looks at the clock before each of its turns, a call before it begins, and what grows without
either is measured: powers, products, sums and the text of `~`.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

MAX_SECONDS = 3.0  # of CPU time of the thread; templates take milliseconds
_MAX_SIZE = 1 << 26  # of a string or list, in characters or items
_MAX_BITS = 1 << 20  # of an integer
_LOOK_AGAIN = 0.1  # seconds of the clock, which is cheaper to read than computing time
_used = threading.local()  # until when a template may run, and how much it has written


class LimitError(Exception):
    """A template that does not end, or whose text does not fit."""


def start() -> None:
    """Starts the time of a template in this thread."""
    _used.until, _used.look_at = time.thread_time() + MAX_SECONDS, time.monotonic() + _LOOK_AGAIN
    _used.written = 0


def check() -> None:
    """
    Raises:
      LimitError: the time is over.
    """
    if time.monotonic() < _used.look_at:
        return
    if time.thread_time() > _used.until:
        raise LimitError(f"it has not ended after {MAX_SECONDS:g} s of computing")
    _used.look_at = time.monotonic() + _LOOK_AGAIN


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """Yields the items of a loop. Raises as check does."""
    for item in items:
        check()
        yield item


def written(value: Any) -> Any:
    """Returns what an expression writes.

    Raises:
      LimitError: together with what was written before, it is too long.
    """
    if isinstance(value, str):
        _used.written += len(value)
        _check_size(_used.written)
    return value


def concatenate(parts: Iterable[Any]) -> str:
    """Returns what `~` does, as text.

    Raises:
      LimitError: it is too long.
    """
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Checks the result of `left operator right` before it is computed.

    Raises:
      LimitError: it is too large.
    """
    if isinstance(left, int) and isinstance(right, int):
        if operator == "*":
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**":
            _check_bits(left.bit_length() * right)
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        _check_size(len(left) + len(right))
    elif operator == "*":
        for items, times in ((left, right), (right, left)):
            if isinstance(items, Sized) and isinstance(times, int):
                _check_size(len(items) * times)


def _check_size(size: int) -> None:
    if size > _MAX_SIZE:
        raise LimitError(f"it makes text or a list of {size:,} characters or items")


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise LimitError(f"it makes a number of {bits:,} bits")
