"""The pipes of a run: reads what it writes, and ends a run that is over a limit."""

import contextlib
import dataclasses
import json
import math
import os
import select
import signal
import socket
import tempfile
import threading
import time
from typing import Any

from qwen_jax.sandbox import workdir
from qwen_jax.sandbox.inside import zygote
from qwen_jax.sandbox.result import Result

MAX_OUTPUT = 1 << 20  # bytes of stdout, and of stderr
KILL_SECONDS = 30.0
_MAX_RESULTS = 16 << 20
_DISK_POLL = 0.05


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one run."""

    seconds: float  # CPU time, and wall clock unless wall_seconds is given
    memory: int  # bytes
    wall_seconds: float
    disk: int = zygote.USUAL_DISK  # bytes
    files: int = zygote.USUAL_FILES
    output: int = MAX_OUTPUT  # bytes of stdout, and of stderr


class ZygoteLost(Exception):
    """The zygote has ended."""


class Run:
    """The pipes of one run."""

    def __init__(
        self,
        control: socket.socket,
        number: int,
        kind: int,
        content: bytes,
        lock: threading.Lock,
        channel: socket.socket | None = None,
    ):
        self._control, self._number, self._lock = control, number, lock
        self._status: list[dict[str, Any]] = []
        self._reason = ""
        self._poll = select.poll()
        self._started = time.monotonic()
        self._read: dict[str, int] = {}
        self._data = {name: bytearray() for name in ("stdout", "stderr", "status", "results")}
        self._caps = dict.fromkeys(self._data, 1 << 16)
        theirs = []
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(content)
            try:
                for name in self._data:
                    if name == "results" and channel is not None:
                        theirs.append(os.dup(channel.fileno()))
                        continue
                    self._read[name], write = os.pipe()
                    theirs.append(write)
                self._send(kind, [file.fileno(), *theirs])
            except OSError as error:
                raise ZygoteLost(str(error)) from None
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
        self._names = {descriptor: name for name, descriptor in self._read.items()}
        for descriptor in self._names:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        if self._read.get("status") is not None and not self._status:
            self.kill("interrupted")  # the caller's Ctrl-C
        for descriptor in self._read.values():
            os.close(descriptor)

    def _send(self, kind: int, descriptors: list[int]) -> None:
        with self._lock:
            message = zygote.MESSAGE.pack(self._number, kind)
            socket.send_fds(self._control, [message], descriptors)

    def kill(self, reason: str) -> None:
        """Ends the run, which takes a moment; the first reason counts."""
        self._reason = self._reason or reason
        with contextlib.suppress(OSError):
            self._send(zygote.KILL, [])

    def watch(self, descriptor: int) -> None:
        """Adds a descriptor that `poll` waits for, too."""
        self._poll.register(descriptor, select.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Ends `watch`."""
        self._poll.unregister(descriptor)

    def limit_output(self, limits: Limits) -> None:
        """Sets how much the run may write before it is killed."""
        self._caps |= dict.fromkeys(("stdout", "stderr"), limits.output) | {"results": _MAX_RESULTS}

    @property
    def ended(self) -> bool:
        """Whether the run's process has ended."""
        return any("exit" in line for line in self._status)

    def poll(self, seconds: float) -> list[int]:
        """Waits for output and reads it; returns the descriptors that were ready."""
        ready = [descriptor for descriptor, _ in self._poll.poll(max(0, math.ceil(seconds * 1000)))]
        for descriptor in ready:
            if descriptor in self._names:
                self._drain(self._names[descriptor])
        return ready

    def check_disk(self, limits: Limits, box: str) -> None:
        """Kills a run that has written more than it may, where no mount limits it."""
        if not self._reason and box:
            size, files = workdir.usage(box, files=limits.files)
            if size > limits.disk or files > limits.files:
                self.kill(f"disk: more than {limits.disk} bytes or {limits.files} files")

    def wait(self, limits: Limits, box: str) -> Result:
        """Reads until the run has ended, and kills it at a limit."""
        self.limit_output(limits)
        end = self._started + limits.wall_seconds
        while not self.ended:
            left = (end if not self._reason else end + KILL_SECONDS) - time.monotonic()
            ready = self.poll(min(left, _DISK_POLL) if box else left)
            self.check_disk(limits, box)
            if left <= 0 and not ready:
                if self._reason:
                    raise ZygoteLost("it did not end a run that was killed")
                self.kill(f"time: more than {limits.wall_seconds:g} s of wall clock")
                end = time.monotonic()
        return self.result(limits)

    def take(self) -> tuple[str, str]:
        """Returns what the run has written to stdout and stderr since the last call."""
        taken = []
        for name in ("stdout", "stderr"):
            self._drain(name)
            taken.append(self._data[name].decode("utf-8", "replace"))
            self._data[name].clear()
        return taken[0], taken[1]

    def _drain(self, name: str) -> None:
        """Reads what is there; kills the run when it has written more than it may."""
        cap = self._caps[name]
        while True:
            try:
                data = os.read(self._read[name], 1 << 16)
            except BlockingIOError:
                return
            if not data:
                if name == "status" and not any("exit" in line for line in self._status):
                    raise ZygoteLost("its pipe closed")
                self._ignore(name)
                return
            kept = self._data[name]
            kept += data
            if name == "status" and kept.endswith(b"\n"):
                self._status = [json.loads(line) for line in kept.splitlines()]
                return
            if len(kept) > cap:
                del kept[cap:]
                self._ignore(name)
                self.kill(f"output: more than {cap} bytes of {name}")
                return

    def _ignore(self, name: str) -> None:
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._read[name])

    def result(self, limits: Limits) -> Result:
        """Returns how the run, which has ended, ended."""
        for name in self._read.keys() - {"status"}:
            self._drain(name)
        line: dict[str, Any] = {}
        for each in self._status:
            line |= each
        status, cpu = line["exit"], line["cpu"]
        if "step" in line and status == 0:
            status = line["status"]
        stdout, stderr = (
            self._data[name].decode("utf-8", "replace") for name in ("stdout", "stderr")
        )
        reason = self._reason or line.get("reason", "") or line.get("error", "")
        if not reason and (
            status in (-signal.SIGXCPU, 128 + signal.SIGXCPU) or cpu > limits.seconds
        ):
            # Steps of a build have limits of their own.
            limit = f"{limits.seconds:g} s" if math.isfinite(limits.seconds) else "a step's limit"
            reason = f"time: more than {limit} of CPU"
        elif not reason and status and stderr.rstrip().endswith("MemoryError"):
            reason = f"memory: more than {limits.memory >> 20} MB"
        elif not reason and status:
            reason = f"signal {-status}" if status < 0 else f"exit status {status}"
        if reason and line.get("step", 0) < line.get("steps", 1) - 1:
            reason = f"compiling: {reason}"
        return Result(
            ok=not reason,
            stdout=stdout,
            stderr=stderr,
            reason=reason,
            seconds=time.monotonic() - self._started,
            cpu_seconds=cpu,
            status=status,
            results=bytes(self._data["results"]),
        )
