"""The writable folder of a run where there is no mount namespace: measured and removed."""

import contextlib
import os
import stat


def usage(folder: str, *, files: int) -> tuple[int, int]:
    """Returns (bytes on disk, number of entries) below a folder; stops counting above `files`."""
    size, count, todo = 0, 0, [folder]
    while todo and count <= files:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                count += 1
                if count > files:
                    break
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    with contextlib.suppress(OSError):
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
    return size, count


def remove(folder: str) -> None:
    """Removes a folder that untrusted code has filled: of any depth, with any permissions.

    No process may use it any more. Never follows a symbolic link. Folders move to the top before
    they are emptied, so that no path is ever long.
    """
    moved = 0
    os.chmod(folder, 0o700)
    while names := os.listdir(folder):
        for name in names:
            path = os.path.join(folder, name)
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
                continue
            os.chmod(path, 0o700)
            for inner in os.listdir(path):
                below = os.path.join(path, inner)
                if stat.S_ISDIR(os.lstat(below).st_mode):
                    os.chmod(below, 0o700)
                    moved += 1
                    os.rename(below, os.path.join(folder, f"...moved{moved}"))
                else:
                    os.unlink(below)
            os.rmdir(path)
    os.rmdir(folder)
