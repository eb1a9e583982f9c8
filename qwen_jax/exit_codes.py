"""Exit codes of a run, and after which of them its launcher restarts it.

A full disk and wrong settings do not restart; everything that another start may cure does.
"""

import contextlib
import errno
import re
import signal
from collections.abc import Iterator, Sequence
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
LOST_PROCESS = 77
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
    ExitCode(LOST_PROCESS, "another process is missing or late, or the network is down", True),
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
_LOST = (
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
)
# How the distributed runtime (gRPC, Gloo, NCCL) and object stores state that another machine does
# not respond, also in errors of libraries that pass the text on.
_LOST_TEXT = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b|Connection (closed by peer|reset)"
    r"|Barrier (timed out|failed)|\bNCCL (operation|error)|ncclRemoteError"
)
# Exit codes that the loss of another process leads to: the distributed runtime aborts (SIGABRT),
# and the launcher ends what waits (SIGTERM, SIGKILL).
_CONSEQUENCES = (LOST_PROCESS, 134, 143)
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


def restarts(code: int) -> bool:
    """Returns whether a launcher restarts a run after this exit code.

    A code that is not in the table is a signal (negative, or above 128) or another crash.
    """
    return code != DONE and code not in NOT_RESTARTED


def first_cause(codes: Sequence[int]) -> int:
    """Returns the exit code that decides about a run of several processes.

    A process that fails takes the others with it, so theirs say nothing: they are aborted or ended,
    or report that a process is lost. The first code that is not such a consequence decides.

    Args:
      codes: exit codes of the processes in the order of their ends; a negative one is a signal.
    """
    failed = [128 - code if code < 0 else code for code in codes if code != DONE]
    causes = [code for code in failed if not is_consequence(code)]
    return next(iter([*causes, *failed]), DONE)


def is_consequence(code: int) -> bool:
    """Returns whether a process with this exit code failed because another one did."""
    return (128 - code if code < 0 else code) in _CONSEQUENCES


def meaning(code: int) -> str:
    """Returns what an exit code of a run says; one that is not in the table may be a signal."""
    known = next((row.meaning for row in TABLE if row.code == code), None)
    if known is None and (code < 0 or code > 128):
        with contextlib.suppress(ValueError):
            known = f"killed by {signal.Signals(-code if code < 0 else code - 128).name}"
    return known or "not a code of this package"


def of(error: BaseException) -> int:
    """Returns the exit code of an error that ends a program.

    The system error that caused it decides between a full disk and unreadable storage. An error
    that a lost process or connection caused is not one of the settings, whatever it reports.
    """
    own = getattr(error, "exit_code", None)
    if own not in (None, REFUSED):
        return own
    if full_disk(error) is not None:
        return DISK_FULL
    if any(number in _UNREADABLE for _, number in _system_errors(error)):
        return UNREADABLE
    if _lost(error):
        return LOST_PROCESS
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


def _lost(error: BaseException) -> bool:
    """Returns whether another process or machine that does not respond caused `error`."""
    for cause in _causes(error):
        if getattr(cause, "exit_code", None) == LOST_PROCESS or isinstance(cause, TimeoutError):
            return True
        if isinstance(cause, OSError):
            if cause.errno in _LOST:
                return True
        elif not hasattr(cause, "exit_code") and _LOST_TEXT.search(str(cause)):
            return True
    return False


def _system_errors(error: BaseException) -> Iterator[tuple[BaseException, int]]:
    """Yields (error, errno) of `error` and its causes, also of libraries that state it as text."""
    for cause in _causes(error):
        if isinstance(cause, OSError):
            if cause.errno is not None:
                yield cause, cause.errno
        # Rust (safetensors, tokenizers) writes "os error 28", TensorStore os_error_code='28'.
        elif found := re.search(r"os[ _]error(?:_code)?[ =:']+(\d+)", str(cause)):
            yield cause, int(found[1])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields `error`, what caused it, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
