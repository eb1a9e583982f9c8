"""One writer per folder: lock.json names the process that writes to it.

The file's time of modification is the heartbeat. On this machine, the process id and its start time
say at once whether the writer lives. Elsewhere (another machine, or another container, where
process ids mean something else) only a heartbeat that does not move does. Times are compared on the
file system's own clock, since machines disagree about the time.

The file is created with a hard link, which is atomic on NFS too. A stale file is replaced under a
lock (flock) of the replaced file, so only one of several processes takes over. On a file system
without hard links or flock, `Lock.check`, before every save, finds a lost lock.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from qwen_jax.errors import FolderInUseError, TrainingError

NAME = "lock.json"
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0  # without a heartbeat: eight are missing
_POLL_SECONDS = 1.0
_PROC = pathlib.Path("/proc")


@dataclasses.dataclass(frozen=True)
class Writer:
    """The process that holds a lock, as lock.json records it."""

    host: str
    pid: int
    started: str | None  # of the process, as the system reports it; None: unknown
    machine: str  # boot and process namespace: where `pid` means this process
    since: str  # time at which the lock was taken
    token: str  # unique

    @classmethod
    def this_process(cls) -> "Writer":
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            machine=_machine(),
            since=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            token=secrets.token_hex(8),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def lives(self) -> bool | None:
        """Returns whether the process runs; None if this process cannot know."""
        if self.machine != _machine():
            return None
        started = _started(self.pid)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's process, which /proc may hide
            if started is None and self.started is not None:
                return None
        return self.started == started


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: pathlib.Path, writer: Writer):
        self._path, self._writer = path, writer

    def check(self) -> None:
        """Raises TrainingError if another process has taken over, because this one was frozen."""
        with contextlib.suppress(OSError):  # a failing disk fails the save as well
            found = _read(self._path)
            if found is None:  # deleted by hand
                self._restore()
                found = _read(self._path)
            if found != self._writer:
                raise TrainingError(
                    f"another process has taken over the folder: {found or 'unknown'}.",
                    str(self._path),
                    "let that process go on: this one was silent for too long (suspended, or its "
                    "file system did not answer). It has not overwritten anything.",
                )

    def beat(self) -> None:
        """Moves the heartbeat, unless the lock is lost."""
        with contextlib.suppress(OSError):  # a file system that recovers later
            if _read(self._path) == self._writer:
                os.utime(self._path)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if _read(self._path) == self._writer:
                self._path.unlink()

    def _restore(self) -> None:
        temporary = _write(self._path, self._writer)
        _create(temporary, self._path)
        temporary.unlink()


@contextlib.contextmanager
def hold(
    folder: str | os.PathLike,
    *,
    flag: str = "--run_dir",
    log: Callable[[str], None] = print,
    stale_seconds: float = STALE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Lock]:
    """Holds the lock of a folder, which is created if it is missing, during a `with` block.

    A writer that is dead is replaced at once, and logged. If only its heartbeat can tell, this
    function waits until it moves (then the writer lives) or is `stale_seconds` old.

    Args:
      flag: the flag that chooses the folder, named in errors.
      log: receives a line for a wait and for a stale lock.

    Raises:
      FolderInUseError: another process writes to the folder; names its host, process and start.
      OSError: the folder or the file cannot be written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = take(folder / NAME, flag=flag, log=log, stale_seconds=stale_seconds, sleep=sleep)
    with beating(lock, HEARTBEAT_SECONDS):
        yield lock


class Beats(Protocol):
    """A lock that its holder renews."""

    def beat(self) -> None: ...

    def release(self) -> None: ...


@contextlib.contextmanager
def beating(lock: Beats, seconds: float) -> Iterator[None]:
    """Renews a lock in a thread during the block, and releases it at its end."""
    stop = threading.Event()

    def beats() -> None:
        while not stop.wait(seconds):
            lock.beat()

    thread = threading.Thread(target=beats, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        lock.release()


def take(
    path: pathlib.Path,
    *,
    flag: str,
    log: Callable[[str], None],
    stale_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Lock:
    """Takes the lock, without a heartbeat. Arguments and errors are as in `hold`."""
    writer = Writer.this_process()
    temporary = _write(path, writer)
    try:
        while not _create(temporary, path):
            beat, holder = _heartbeat(path), _read(path)
            lives = None if holder is None else holder.lives()
            if lives is None and beat is not None:
                lives = _watch(path, temporary, beat, stale_seconds, holder, log, sleep)
            if lives:
                raise _refused(path, _read(path) or holder, flag)
            if _replace(temporary, path, holder):
                log(f"took over the lock of {holder or 'an unknown process'}, which has ended")
                break
    finally:
        temporary.unlink(missing_ok=True)
    if (found := _read(path)) != writer:  # two at once, on a file system without flock
        raise _refused(path, found, flag)
    return Lock(path, writer)


def _watch(path, temporary, beat, stale_seconds, holder, log, sleep) -> bool:
    """Returns whether the heartbeat moves before it is stale."""
    age = _now(temporary) - beat
    if age < stale_seconds:
        log(
            f"waiting up to {stale_seconds:.0f} s for a heartbeat of "
            f"{holder or 'an unknown process'}, the last writer of {path.parent}"
        )
    for _ in range(int(stale_seconds / _POLL_SECONDS) + 1):  # also if clocks go backwards
        if _now(temporary) - beat >= stale_seconds:
            return False
        sleep(_POLL_SECONDS)
        if (found := _heartbeat(path)) != beat:
            return found is not None
    return False


def _refused(path: pathlib.Path, holder: Writer | None, flag: str) -> FolderInUseError:
    return FolderInUseError(
        f"another process writes to this folder: {holder or 'unknown'}.",
        f"{flag}={path.parent}",
        f"wait until it has ended, stop it, or use another {flag}.",
    )


def _write(path: pathlib.Path, writer: Writer) -> pathlib.Path:
    """Writes the record to a temporary file next to `path`, and returns its path."""
    temporary = path.with_name(f"{path.name}.{writer.token}.writing")
    temporary.write_text(json.dumps(dataclasses.asdict(writer), indent=1) + "\n", encoding="utf-8")
    return temporary


def _create(temporary: pathlib.Path, path: pathlib.Path) -> bool:
    """Creates `path` with the contents of `temporary`; returns False if it exists."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with open(path, "xb") as file:
                file.write(temporary.read_bytes())
            return True
        except FileExistsError:
            return False


def _replace(temporary: pathlib.Path, path: pathlib.Path, holder: Writer | None) -> bool:
    """Replaces the lock of `holder`; returns False if another process was faster."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return False
    with file:
        with contextlib.suppress(OSError):  # a file system without flock
            fcntl.flock(file, fcntl.LOCK_EX)
        if not _same_file(file.fileno(), path) or _read(path) != holder:
            return False
        copy = temporary.with_name(temporary.name + ".2")  # `temporary` stays for the clock
        copy.write_bytes(temporary.read_bytes())
        os.replace(copy, path)
        return True


def _same_file(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read(path: pathlib.Path) -> Writer | None:
    """Returns the writer in a lock file; None if the file is missing or damaged."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Writer(**{field.name: record[field.name] for field in dataclasses.fields(Writer)})
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _heartbeat(path: pathlib.Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _now(temporary: pathlib.Path) -> float:
    """Returns the time on the file system's clock."""
    os.utime(temporary)
    return temporary.stat().st_mtime


def _machine() -> str:
    """Returns what identifies this boot of this machine and this process namespace.

    Containers on one machine share the boot but not the namespace; host names tell neither.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:  # not Linux
        return f"{sys.platform} {socket.gethostname()}"


def _started(pid: int) -> str | None:
    """Returns when a process started, in clock ticks since boot; None if it is not known."""
    try:
        status = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
