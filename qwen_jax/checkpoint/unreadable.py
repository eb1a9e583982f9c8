"""A file that cannot be read now, such as on a mount that is late, is not a damaged one."""

import errno
import os
import pathlib

from qwen_jax.errors import CheckpointError

MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # verified: it is not there
_OFFLINE = (
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOMEDIUM if hasattr(errno, "ENOMEDIUM") else errno.ENODEV,
)
_OFFLINE_FIX = "check that its file system is mounted and online, and run the command again."
_FIXES = {
    **dict.fromkeys(_OFFLINE, _OFFLINE_FIX),
    errno.EACCES: "run as a user who may read it, or change its permissions, and run again.",
    errno.EPERM: "run as a user who may read it, or change its permissions, and run again.",
    errno.EIO: "check the disk or the network file system (dmesg), and run the command again; if "
    "the file is lost, move its step elsewhere to use an older one.",
    errno.EMFILE: "raise the limit on open files (ulimit -n), and run the command again.",
    errno.ENFILE: "close other programs or raise the limit on open files, and run again.",
}


def unreadable(path: str | os.PathLike, error: OSError) -> CheckpointError:
    """Returns the error for a file or folder of a checkpoint that exists but cannot be read."""
    path = pathlib.Path(path)
    code = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return CheckpointError(
        f"{path.name} cannot be read: {error.strerror or error} ({code}). Nothing was changed.",
        str(path),
        _FIXES.get(error.errno or 0, "fix the cause, and run the command again."),
    )


def exists(path: str | os.PathLike) -> bool:
    """Returns whether the path exists. pathlib's `exists` is False for a path it cannot read.

    Raises:
      CheckpointError: this cannot be read.
    """
    try:
        os.stat(path)
    except MISSING:
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return True
