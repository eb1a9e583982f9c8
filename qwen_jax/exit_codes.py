"""Exit codes of a run, and after which of them its launcher restarts it.

A full disk and wrong settings do not restart; everything that another start may cure does.
"""

import errno
import re
from collections.abc import Iterator
from typing import NamedTuple


class ExitCode(NamedTuple):
    """One exit code of a run."""

    code: int
    meaning: str
    restart: bool  # whether launchers restart the run


DONE = 0
REFUSED = 1
USAGE = 2
CRASHED = 70
DISK_FULL = 73
UNREADABLE = 74
PREEMPTED = 75
SDC = 76
FOLDER_IN_USE = 78
INTERRUPTED = 130
CLOSED_PIPE = 141

TABLE = (
    ExitCode(DONE, "the run is complete, or SIGTERM stopped it without a launcher", False),
    ExitCode(REFUSED, "wrong settings or data, or a path that must not be written", False),
    ExitCode(USAGE, "a launcher or Python refused its own arguments", False),
    ExitCode(CRASHED, "an unexpected error", True),
    ExitCode(DISK_FULL, "a disk, a quota or a limit on file sizes is full", False),
    ExitCode(UNREADABLE, "storage cannot be read, for example because it is not mounted", True),
    ExitCode(PREEMPTED, "SIGTERM stopped the run after it saved a checkpoint", True),
    ExitCode(SDC, "a step computed twice gave two results (silent data corruption)", True),
    # Above all others that a failing process may cause in the rest: Slurm reports the highest.
    ExitCode(FOLDER_IN_USE, "another process holds the run folder", False),
    ExitCode(INTERRUPTED, "Ctrl-C stopped it; a run that trains has saved a checkpoint", False),
    ExitCode(CLOSED_PIPE, "the reader of the printed results is gone, as in `| head`", False),
)
NOT_RESTARTED = tuple(row.code for row in TABLE if row.code and not row.restart)
RESTARTED = tuple(row.code for row in TABLE if row.restart)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNREADABLE = (
    errno.EIO,
    errno.ENXIO,
    errno.ENODEV,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
)
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


def restarts(code: int) -> bool:
    """Returns whether a launcher restarts a run after this exit code.

    A code that is not in the table is a signal (negative, or above 128) or another crash.
    """
    return code != DONE and code not in NOT_RESTARTED


def of(error: BaseException) -> int:
    """Returns the exit code of an error that ends a program.

    The system error that caused it decides between a full disk and unreadable storage.
    """
    own = getattr(error, "exit_code", None)
    if own not in (None, REFUSED):
        return own
    if full_disk(error) is not None:
        return DISK_FULL
    if any(number in _UNREADABLE for _, number in _system_errors(error)):
        return UNREADABLE
    if own is None:
        return CRASHED if file_error(error) is None else REFUSED
    return own


def file_error(error: BaseException) -> OSError | None:
    """Returns the system error that caused `error` if it says that a file is out of reach.

    Its disk is full, read-only, broken or offline, or its permissions forbid the access. Returns
    None for another cause, and for an error that does not name its file.
    """
    return next(
        (
            cause
            for cause, number in _system_errors(error)
            if number in (*_FULL, *_UNREADABLE, *_DENIED)
            and isinstance(cause, OSError)
            and cause.filename is not None
        ),
        None,
    )


def full_disk(error: BaseException) -> BaseException | None:
    """Returns the system error of a full disk, quota or file-size limit that caused `error`.

    Returns None if another reason caused it.
    """
    return next((cause for cause, number in _system_errors(error) if number in _FULL), None)


def full_disk_number(error: BaseException) -> int | None:
    """Returns the number of the system error that full_disk finds."""
    return next((number for _, number in _system_errors(error) if number in _FULL), None)


def _system_errors(error: BaseException) -> Iterator[tuple[BaseException, int]]:
    """Yields (error, errno) of `error` and its causes, also of libraries that state it as text."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError):
            if cause.errno is not None:
                yield cause, cause.errno
        # Rust (safetensors, tokenizers) writes "os error 28", TensorStore os_error_code='28'.
        elif found := re.search(r"os[ _]error(?:_code)?[ =:']+(\d+)", str(cause)):
            yield cause, int(found[1])
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
