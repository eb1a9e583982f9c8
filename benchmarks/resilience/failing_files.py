"""Runs a module whose file operations in a folder fail, from the nth change on.

    FAILING_FILES="EIO 17 FOLDER" python -m benchmarks.resilience.failing_files \\
        experiments.pretrain --run_dir=FOLDER ...

EIO also fails reads from then on, ENOSPC only what needs space, EACCES everything that changes a
folder or opens a file to write. With "COUNT FILE FOLDER" nothing fails, and FILE gets the number of
changes. An audit hook of Python sees each operation before it happens, with its path; it does not
see writes to open files, nor files that C++ opens (arrays of checkpoints): for those, a disk must
be full or read-only (disks.py).
"""

import atexit
import errno
import os
import pathlib
import runpy
import sys

VARIABLE = "FAILING_FILES"
_NEED_SPACE = frozenset({"os.mkdir", "os.rename", "os.link", "os.symlink"})
_FREE = frozenset({"os.remove", "os.rmdir", "os.truncate", "os.utime", "os.chmod"})
_READ = frozenset({"os.listdir", "os.scandir"})


class Failing:
    """The audit hook."""

    def __init__(self, kind: str, at: str, folder: str):
        self._kind, self._folder = kind, folder.rstrip("/") + "/"
        self._at = int(at) if kind != "COUNT" else sys.maxsize
        self._changes = 0
        if kind == "COUNT":
            atexit.register(lambda: pathlib.Path(at).write_text(str(self._changes)))

    def __call__(self, event: str, arguments: tuple) -> None:
        changes = event in _NEED_SPACE or event in _FREE
        needs_space = event in _NEED_SPACE
        if event == "open":
            changes = needs_space = _writes(arguments[1], arguments[2])
        elif not changes and event not in _READ:
            return
        # The last path of a rename or link is the new one; both are in the folder.
        if not any(self._inside(argument) for argument in arguments[:2]):
            return
        self._changes += changes
        if self._changes < self._at:
            return
        if self._kind == "EIO" or (needs_space if self._kind == "ENOSPC" else changes):
            code = getattr(errno, self._kind)
            raise OSError(code, os.strerror(code), os.fspath(arguments[0]))

    def _inside(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and str(path).startswith(self._folder)


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main() -> None:
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    kind, at, folder = os.environ[VARIABLE].split(" ", 2)
    sys.addaudithook(Failing(kind, at, folder))
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
