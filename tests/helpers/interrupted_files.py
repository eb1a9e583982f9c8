"""Simulates a SIGKILL or a full disk at the nth call that changes files, within this process."""

import builtins
import contextlib
import errno
import os
from collections.abc import Iterator

import pytest

_CALLS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync")
FREES = ("unlink", "remove", "rmdir")  # what a full disk still does


class Killed(BaseException):
    """Stands for a SIGKILL: no handler can change a file afterward."""


@contextlib.contextmanager
def interrupted(at: int | None = None, *, full_disk: bool = False) -> Iterator[list[str]]:
    """Yields the list of the calls so far; the one with index `at` and all later ones fail.

    Args:
      at: index of the first call that fails; None: none does, which counts them.
      full_disk: whether they fail with ENOSPC, and only if they need space. Otherwise they raise
        Killed, so that `finally` blocks change nothing either, as after a SIGKILL.
    """
    calls: list[str] = []

    def wrapped(name, call):
        def changing(*arguments, **options):
            mode = arguments[1] if len(arguments) > 1 else options.get("mode", "r")
            if name == "open" and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return call(*arguments, **options)
            calls.append(name)
            if at is not None and len(calls) > at:
                if not full_disk:
                    raise Killed
                if name not in FREES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
            return call(*arguments, **options)

        return changing

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        patch.setattr(builtins, "open", wrapped("open", builtins.open))
        yield calls
