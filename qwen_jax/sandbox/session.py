"""A session: Python code cell by cell in one sandboxed process, as in a notebook. Report: 3.4."""

import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from qwen_jax.sandbox import programs, workdir
from qwen_jax.sandbox.inside.cells import LENGTHS, MAX_LISTED
from qwen_jax.sandbox.isolation import SandboxError
from qwen_jax.sandbox.pipes import KILL_SECONDS, ZygoteLost

_GRACE = 2.0  # seconds in which a cell that is over its limit may end by itself
_POLL = 0.1
_MAX_HEADER = 2 << 20
_CPU_SECONDS = 24 * 3600.0  # of a session; cells are limited by wall clock


@dataclasses.dataclass(frozen=True)
class Cell:
    """The end of a cell. All of it is the word of untrusted code.

    Fields:
      stdout, stderr: what it printed. A traceback is in stderr.
      value: repr of the last line, if that is an expression with a value.
      error: "", "exception", "time", or why the session has ended.
      figures: names of the PNG files of its matplotlib figures.
      files: (name, bytes) of files that it wrote; names are relative, without "..".
      files_left_out: how many more files it wrote than a reply lists.
      alive: whether the variables are still there.
    """

    stdout: str
    stderr: str
    value: str | None = None
    error: str = ""
    figures: tuple[str, ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    files_left_out: int = 0
    alive: bool = True
    seconds: float = 0.0


class SessionEnded(Exception):
    """The process of a session has ended; the message says why."""


class Session:
    """A Python process in the sandbox that keeps its variables between cells.

    Cells see what programs of `run` see, and one writable folder. Files go in and out through
    `put` and `get`; nothing of the session is in this machine's file system. One thread at a time
    uses a session.

    Args:
      memory_mb: limit of address space.
      disk_mb: limit of the folder.
      unsafe: as in run.

    Raises:
      SandboxError, ConfigError: as run does.
    """

    def __init__(self, *, memory_mb: int = 1024, disk_mb: int = 64, unsafe: bool = False):
        self._limits = dataclasses.replace(
            programs.limits_of(_CPU_SECONDS, memory_mb, None), disk=disk_mb << 20
        )
        supervisor = programs.python(unsafe)
        self._channel, theirs = socket.socketpair()
        self._received = bytearray()
        try:
            payload = {"files": {}, "code": "", "session": True}
            self._run, self._box = supervisor.open(payload, self._limits, theirs)
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()
        self._channel.setblocking(False)
        self._run.watch(self._channel.fileno())
        self._run.limit_output(self._limits)
        self._open = True
        self._using = threading.Lock()

    def run(
        self, code: str, *, seconds: float, cancelled: Callable[[], bool] = lambda: False
    ) -> Cell:
        """Runs a cell.

        A cell over its limit gets an exception and keeps the variables; if it goes on all the
        same, the session ends. So it does if the cell writes more than 1 MiB.

        Args:
          seconds: limit of wall clock.
          cancelled: called ten times a second; true ends the session.

        Raises:
          SessionEnded: it has ended before.
        """
        with self._using:
            if not self._open:
                raise SessionEnded("the session has ended before")
            begin = time.monotonic()
            message = {"cell": code, "seconds": seconds}
            try:
                reply, _ = self._exchange(message, b"", seconds + _GRACE, cancelled)
            except SessionEnded as ended:
                stdout, stderr = self._output
                spent = time.monotonic() - begin
                return Cell(stdout, stderr, error=str(ended), alive=False, seconds=spent)
            stdout, stderr = self._run.take()
            return _cell(reply, stdout, stderr, time.monotonic() - begin)

    def put(self, name: str, content: bytes) -> None:
        """Writes a file into the session's folder.

        Raises:
          ConfigError: the name leaves the folder.
          SessionEnded: the session has ended.
          OSError: it could not be written.
        """
        programs.check_files({name: ""})
        with self._using:
            reply, _ = self._exchange({"put": name}, content, KILL_SECONDS)
        if "error" in reply:
            raise OSError(str(reply["error"])[:500])

    def get(self, name: str) -> bytes:
        """Returns the content of a file of the session's folder. Raises as `put`."""
        programs.check_files({name: ""})
        with self._using:
            reply, content = self._exchange({"get": name}, b"", KILL_SECONDS)
        if "error" in reply:
            raise OSError(str(reply["error"])[:500])
        return content

    def close(self) -> None:
        """Ends the process; its folder is gone."""
        if not self._open:
            return
        self._end("closed")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _exchange(
        self,
        header: dict[str, Any],
        data: bytes,
        seconds: float,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[str, Any], bytes]:
        """Sends a message and returns the reply."""
        if not self._open:
            raise SessionEnded("the session has ended before")
        packed = json.dumps(header).encode()
        unsent = memoryview(LENGTHS.pack(len(packed), len(data)) + packed + data)
        end = time.monotonic() + seconds
        try:
            while True:
                unsent = self._send(unsent)
                if (reply := self._reply()) is not None:
                    return reply
                if self._run.ended:
                    raise SessionEnded(self._end(""))
                self._run.poll(0.0 if unsent else _POLL)
                if unsent:
                    time.sleep(0.001)
                self._run.check_disk(self._limits, self._box)
                if time.monotonic() > end:
                    raise SessionEnded(self._end(f"time: more than {seconds - _GRACE:g} s"))
                if cancelled():
                    raise SessionEnded(self._end("cancelled"))
        except _Malformed as error:
            raise SessionEnded(self._end(f"its replies cannot be read: {error}")) from None
        except BaseException:
            if self._open:  # Ctrl-C
                self._end("interrupted")
            raise

    def _send(self, unsent: memoryview) -> memoryview:
        while unsent:
            try:
                unsent = unsent[self._channel.send(unsent[: 1 << 20]) :]
            except BlockingIOError:
                return unsent
            except OSError:
                return unsent[:0]  # the process is ending
        return unsent

    def _reply(self) -> tuple[dict[str, Any], bytes] | None:
        """Returns a reply, if all of it is there."""
        while True:
            try:
                new = self._channel.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                return None
            if not new:
                self._hung_up()
                return None
            self._received += new
            if len(self._received) > _MAX_HEADER + self._limits.disk + LENGTHS.size:
                raise _Malformed("too long")
        if len(self._received) < LENGTHS.size:
            return None
        header, data = LENGTHS.unpack_from(self._received)
        if header > _MAX_HEADER or data > self._limits.disk:
            raise _Malformed("too long")
        total = LENGTHS.size + header + data
        if len(self._received) < total:
            return None
        if len(self._received) > total:
            raise _Malformed("more than one reply")
        packed = bytes(self._received[LENGTHS.size : LENGTHS.size + header])
        content = bytes(self._received[LENGTHS.size + header :])
        self._received.clear()
        try:
            found = json.loads(packed)
        except (ValueError, RecursionError):
            raise _Malformed("not JSON") from None
        if not isinstance(found, dict):
            raise _Malformed("not an object")
        return found, content

    def _hung_up(self) -> None:
        """Waits for the end of a process that has closed its channel, which exiting does, too."""
        self._run.unwatch(self._channel.fileno())
        end = time.monotonic() + _GRACE
        while not self._run.ended and time.monotonic() < end:
            self._run.poll(_POLL)
        if not self._run.ended:
            raise _Malformed("the code closed their descriptor")

    def _end(self, reason: str) -> str:
        """Ends the process and frees what it has; returns why it has ended."""
        self._open = False
        if reason:
            self._run.kill(reason)
        end = time.monotonic() + KILL_SECONDS
        try:
            while not self._run.ended:
                if time.monotonic() > end:
                    raise SandboxError(
                        "a session that was killed did not end.", "sandbox", "restart the program."
                    )
                self._run.poll(_POLL)
            result = self._run.result(self._limits)
            self._output = result.stdout, result.stderr
            return result.reason or "it exited"
        except ZygoteLost as error:
            self._output = "", ""
            return f"the process that starts sessions has ended: {error}"
        finally:
            self._channel.close()
            self._run.__exit__()
            if self._box:
                workdir.remove(self._box)


class _Malformed(Exception):
    """A reply that the session's own code would not send."""


def _cell(reply: dict[str, Any], stdout: str, stderr: str, seconds: float) -> Cell:
    value, error = reply.get("value"), reply.get("error")
    files, figures = (
        [*found] if isinstance(found := reply.get(key), list) else []
        for key in ("files", "figures")
    )
    sizes = {}
    for each in files[:MAX_LISTED]:
        if isinstance(each, list) and len(each) == 2 and _is_name(each[0]):
            sizes[each[0]] = each[1] if isinstance(each[1], int) else 0
    left_out = reply.get("files_left_out")
    return Cell(
        stdout,
        stderr,
        value if isinstance(value, str) else None,
        error[:500] if isinstance(error, str) else "malformed",
        tuple(name for name in figures if isinstance(name, str) and name in sizes),
        tuple(sizes.items()),
        left_out if isinstance(left_out, int) else 0,
        seconds=seconds,
    )


def _is_name(name: Any) -> bool:
    """Returns whether a name is one of a file in a folder."""
    parts = name.split("/") if isinstance(name, str) else [""]
    return all(part not in ("", ".", "..") and "\0" not in part for part in parts) and (
        len(os.fsencode(name)) < 1024 if name.isprintable() else False
    )
