"""Output that fails: a disk that fills, a standard output that nobody reads."""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def no_reader() -> Iterator[IO[str]]:
    """Replaces standard output by a pipe whose reader is gone. Nothing may be left to write."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream, contextlib.redirect_stdout(stream):
        yield stream


class FullDisk:
    """The module `os` as utils/best_effort.py sees it.

    Writes fail once `room` bytes have been written, after a partial write.

    Args:
      room: bytes that can be written; raise it to free the disk.
      code: errno of the failing write.
      truncates: whether ftruncate works.
    """

    def __init__(self, room: int = 0, code: int = errno.ENOSPC, *, truncates: bool = True):
        self.room, self.code, self.truncates = room, code, truncates

    def write(self, descriptor: int, data: bytes) -> int:
        part = data[: self.room]
        if not part:
            raise OSError(self.code, os.strerror(self.code))
        self.room -= len(part)
        return os.write(descriptor, part)

    def ftruncate(self, descriptor: int, size: int) -> None:
        if not self.truncates:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.ftruncate(descriptor, size)

    def __getattr__(self, name: str):
        return getattr(os, name)
