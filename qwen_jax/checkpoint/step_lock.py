"""A lock on a step: a run does not delete a step that another process is reading.

The lock is a shared `flock` on the step's manifest. File systems without locks ignore it; a reader
then notices that its step is gone, and starts again.
"""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from absl import logging

from qwen_jax.checkpoint import manifest
from qwen_jax.checkpoint.unreadable import unreadable
from qwen_jax.errors import CheckpointError

T = TypeVar("T")
_ATTEMPTS = 5


class StepGone(CheckpointError):
    """A run deleted or replaced the step that was being read."""


def read_latest(read: Callable[[], T]) -> T:
    """Calls `read`, which opens the latest step; calls it again if a run deletes that step.

    Only a single process starts again; several would have to agree.

    Raises:
      StepGone: this happened several times.
    """
    for _ in range(_ATTEMPTS - 1 if jax.process_count() == 1 else 0):
        try:
            return read()
        except StepGone as error:
            logging.warning("%s Reading the latest step instead.", error.what)
    return read()


class ReadLock:
    """Keeps a step from being deleted until `release`, or until it is garbage collected."""

    def __init__(self, folder: pathlib.Path):
        """Locks the step in `folder`.

        Raises:
          OSError: its manifest cannot be opened.
        """
        self._folder, self._path = folder, folder / manifest.NAME
        self._file = open(self._path, "rb")  # closed when collected, which releases the lock
        # Without a lock, on some file systems or during the writer's rename, `holds` finds out.
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def holds(self) -> bool:
        """Returns whether the step is still the one that was locked: not deleted or replaced.

        What was read before a True is complete, because a step is renamed before it is deleted.
        """
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:  # ESTALE: deleted on another computer
            return False

    def check(self) -> None:
        """Raises StepGone if the step was deleted or replaced."""
        if not self.holds():
            raise StepGone(
                f"a run deleted or replaced step {self._folder.name} while it was read.",
                str(self._folder),
                "run the command again to read the latest step; with a larger "
                "--train.keep_checkpoints the run keeps steps longer.",
            )

    def release(self) -> None:
        self._file.close()


def lock(folder: pathlib.Path) -> ReadLock:
    """Returns a lock on the step in `folder`.

    Raises:
      CheckpointError: the step cannot be read, or (StepGone) is not there anymore.
    """
    try:
        return ReadLock(folder)
    except FileNotFoundError:
        raise StepGone(
            f"a run deleted step {folder.name} before it was read.",
            str(folder),
            "run the command again to read the latest step.",
        ) from None
    except OSError as error:
        raise unreadable(folder / manifest.NAME, error) from error


@contextlib.contextmanager
def unread(folder: pathlib.Path) -> Iterator[bool]:
    """Yields whether no other process is reading the step; none can start until the block ends.

    Raises:
      OSError: its manifest cannot be opened.
    """
    with open(folder / manifest.NAME, "r+b") as file:  # NFS locks exclusively only for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError:  # this file system has no locks
            pass
        yield True
