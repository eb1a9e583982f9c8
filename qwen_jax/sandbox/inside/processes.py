"""The processes below one, read from /proc: how many, how much memory; and killing them all."""

import contextlib
import os
import signal
import time


class Tree:
    """Reads a /proc that was opened before this process left it for a root folder of its own.

    Ids are those of the namespace of that /proc.
    """

    def __init__(self, proc: int):
        """Takes the descriptor of /proc."""
        self._proc = proc

    def own(self) -> int:
        """Returns this process's id there."""
        return int(os.readlink("self", dir_fd=self._proc))

    def below(self, root: int) -> list[int]:
        """Returns the ids of all descendants, without `root`."""
        found, todo = [], [root]
        while todo:
            process = todo.pop()
            for child in self._children(process):
                found.append(child)
                todo.append(child)
        return found

    def _children(self, process: int) -> list[int]:
        folder = f"{process}/task"
        found: list[int] = []
        with contextlib.suppress(OSError):
            tasks = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
            try:
                for task in os.listdir(tasks):
                    found += map(int, self._read(f"{folder}/{task}/children").split())
            finally:
                os.close(tasks)
        return found

    def tasks(self, processes: list[int]) -> int:
        """Returns the number of their threads."""
        found = 0
        for process in processes:
            with contextlib.suppress(OSError):
                folder = os.open(f"{process}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
                try:
                    found += len(os.listdir(folder))
                finally:
                    os.close(folder)
        return found

    def memory(self, processes: list[int]) -> int:
        """Returns their resident bytes without files'; what they share counts once for each."""
        found = 0
        for process in processes:
            for line in self._read(f"{process}/status").splitlines():
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    found += int(line.split()[1]) << 10
        return found

    def _read(self, path: str) -> bytes:
        try:
            descriptor = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        except OSError:
            return b""
        try:
            return os.read(descriptor, 1 << 16)
        except OSError:
            return b""
        finally:
            os.close(descriptor)


def kill_below(tree: Tree, *, keep: frozenset[int] = frozenset(), seconds: float = 5.0) -> bool:
    """Kills all descendants of this process but `keep`, and collects those that it inherits.

    For a process that adopts orphans, where no pid namespace ends a tree.

    Returns:
      Whether none is left.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        left = [process for process in tree.below(tree.own()) if process not in keep]
        if not left:
            return True
        for process in left:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        for process in left:  # only own children can be collected; others' parents are killed
            with contextlib.suppress(OSError):
                os.waitpid(process, os.WNOHANG)
        time.sleep(0.001)
    return False
