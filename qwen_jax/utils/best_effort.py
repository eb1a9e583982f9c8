"""Output that may fail while the program goes on: logs, metrics, events, progress bars.

A full disk or a closed pipe must not end a run that still trains. What cannot be written is
counted, the first failure warns on standard error, and the end reports the counts.
"""

import collections
import contextlib
import os
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from qwen_jax.utils.output import discard


class Losses:
    """Counts what could not be written; safe to use from several threads.

    Args:
      stream: receives the warning and the report; None: standard error at that time.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream, self._lock = stream, threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._reasons: dict[str, str] = {}

    def add(self, what: str, error: Exception, count: int = 1) -> None:
        """Counts `count` lost units of `what`, such as "records of metrics.jsonl"."""
        with self._lock:
            first = not self._counts
            self._counts[what] += count
            reason = self._reasons.setdefault(what, reason_of(error))
        if first:
            self.warn(f"cannot write {what}: {reason}; going on, the end reports what was lost")

    def report(self) -> None:
        """Prints the counts, and starts again at 0."""
        with self._lock:
            counts, self._counts = self._counts, collections.Counter()
        for what, count in counts.items():
            self.warn(f"{count:,} {what} could not be written: {self._reasons[what]}")

    def warn(self, text: str) -> None:
        """Prints a warning if standard error is open."""
        stream = self._stream or sys.stderr
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                print(f"warning: {text}", file=stream, flush=True)


def reason_of(error: Exception) -> str:
    """Returns the reason of an error in one line."""
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or f"{type(error).__name__}: {error}".splitlines()[0][:200]


class RecordFile:
    """A file that records are appended to, each with one call of the operating system.

    A record that cannot be written is counted in `losses`. What it left in the file is removed, so
    the file holds only whole records.

    Args:
      separator: written before the next record if an incomplete one cannot be removed, or was left
        by a killed process.
      name: name of the file in messages; None: that of `path`.

    Attributes:
      torn: whether the file ends with an incomplete record.
    """

    def __init__(
        self,
        path: pathlib.Path,
        losses: Losses,
        *,
        separator: bytes = b"\n",
        name: str | None = None,
    ):
        self._path, self._losses, self._separator = path, losses, separator
        self._what = f"records of {name or path.name}"
        self._descriptor: int | None = None
        self._lock = threading.Lock()  # checkpoints log their events from another thread
        self.torn = False

    def append(self, record: bytes) -> bool:
        """Appends a record; creates the file if it is the first. Returns whether it succeeded."""
        with self._lock:
            try:
                self._write(record)
            except OSError as error:
                self._losses.add(self._what, error)
                return False
        return True

    def close(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                with contextlib.suppress(OSError):  # every record was written before
                    os.close(descriptor)

    def _write(self, record: bytes) -> None:
        if self._descriptor is None:
            self._open()
        descriptor = self._descriptor
        assert descriptor is not None
        start, written = os.lseek(descriptor, 0, os.SEEK_END), 0
        record = (self._separator if self.torn else b"") + record
        try:
            while written < len(record):
                written += os.write(descriptor, record[written:])
        except OSError:
            if written:
                try:
                    os.ftruncate(descriptor, start)
                except OSError:
                    self.torn = True
            raise
        self.torn = False

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(self._path, flags, 0o666)
        size, ending = os.lseek(self._descriptor, 0, os.SEEK_END), len(self._separator)
        if size and ending:
            os.lseek(self._descriptor, max(size - ending, 0), os.SEEK_SET)
            self.torn = os.read(self._descriptor, ending) != self._separator


@contextlib.contextmanager
def keep_going() -> Iterator[None]:
    """Lets prints and progress bars in the block fail: standard output and error may be closed.

    For programs whose results are files. One that prints its results uses
    utils.output.exit_on_closed_pipe. Also a decorator: `@keep_going()` above `main`.
    """
    losses = Losses(sys.stderr)
    saved = sys.stdout, sys.stderr
    streams = [
        _Stream(stream, name, losses)
        for stream, name in zip(saved, ("standard output", "standard error"), strict=True)
    ]
    sys.stdout, sys.stderr = streams  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = saved
        for stream in streams:
            stream.flush()
            if stream.failed:  # what is left in its buffer would fail again when Python exits
                discard(stream.inner)
        losses.report()


class _Stream:
    """A text stream whose failures are counted; None is a stream that was closed at the start."""

    def __init__(self, inner: Any, name: str, losses: Losses):
        self.inner, self.failed = inner, False
        self._what, self._losses = f"lines of {name}", losses
        self._pending = 0  # lines since the last successful flush

    def write(self, text: str) -> int:
        self._pending += text.count("\n")
        self._try("write", text)
        return len(text)

    def writelines(self, lines) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        if self._try("flush"):
            self._pending = 0

    def isatty(self) -> bool:
        return self.inner is not None and self.inner.isatty()

    def _try(self, method: str, *arguments: str) -> bool:
        if self.inner is None:
            return False
        try:
            getattr(self.inner, method)(*arguments)
        except (OSError, ValueError) as error:  # ValueError: Python has closed the stream
            self.failed = True
            pending, self._pending = self._pending, 0
            if pending:
                self._losses.add(self._what, error, pending)
            return False
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
