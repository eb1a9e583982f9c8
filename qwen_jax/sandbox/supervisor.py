"""Starts the zygote, sends it runs, reads what they write, and ends those over a limit."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import qwen_jax
from qwen_jax.sandbox import profiles, workdir
from qwen_jax.sandbox.inside import zygote
from qwen_jax.sandbox.isolation import Layers, SandboxError
from qwen_jax.sandbox.kernel import privileges
from qwen_jax.sandbox.result import Result

MAX_OUTPUT = 1 << 20  # bytes of stdout, and of stderr
_MAX_RESULTS = 16 << 20
_START_SECONDS = 300.0  # a few, on a machine that is not busy
_KILL_SECONDS = 30.0
_DISK_POLL = 0.05
_BUILD_DISK, _BUILD_FILES = 512 << 20, 32768  # Go's cache has the standard library
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one run."""

    seconds: float  # CPU time, and wall clock unless wall_seconds is given
    memory: int  # bytes
    wall_seconds: float
    disk: int = zygote.USUAL_DISK  # bytes
    files: int = zygote.USUAL_FILES
    output: int = MAX_OUTPUT  # bytes of stdout, and of stderr


class Supervisor:
    """One zygote and the runs in it. Threads may use it at the same time.

    Args:
      toolchains: folders that runs may read in addition to the system and the interpreter.
      preload: modules that are imported once, before any run is forked.
      namespaces: off: as where the kernel does not permit them.
    """

    def __init__(
        self,
        *,
        toolchains: tuple[str, ...] = (),
        preload: tuple[str, ...] = (),
        namespaces: bool = True,
    ):
        self._toolchains, self._preload = toolchains, preload
        self._namespaces = namespaces
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._layers = Layers()

    @property
    def layers(self) -> Layers:
        """What is enforced here; starts the zygote."""
        self._started()
        return self._layers

    def close(self) -> None:
        """Ends the zygote and all runs."""
        with self._lock:
            self._stop()

    def run(self, payload: dict, limits: Limits, *, build_seconds: float = 0.0) -> Result:
        """Runs one program.

        Args:
          payload: `files` and either `code` (and `entry`, `inputs`) or `steps`.
          build_seconds: of all steps together, which have limits of their own.
        """
        control = self._started()
        box = ""
        if not self._layers.namespaces:
            box = tempfile.mkdtemp(prefix=f"qwen-jax-box-{os.getpid()}-")
            if self._layers.user is not None:
                os.chown(box, self._layers.user, self._layers.user)
        request = {
            "cpu_seconds": limits.seconds,
            "memory": limits.memory,
            "disk": limits.disk,
            "files": limits.files,
            "box": box,
            "build": "steps" in payload,
        }
        if build_seconds:
            wall = build_seconds + _KILL_SECONDS
            limits = dataclasses.replace(limits, wall_seconds=wall, seconds=math.inf)
            limits = dataclasses.replace(limits, disk=_BUILD_DISK, files=_BUILD_FILES)
            request |= {"disk": limits.disk, "files": limits.files}
        usual = limits.disk, limits.files, "steps" in payload
        usual = usual == (zygote.USUAL_DISK, zygote.USUAL_FILES, False)
        kind = zygote.START_USUAL if usual else zygote.START
        content = json.dumps({**payload, "lock": request}).encode()
        try:
            with _Run(control, next(self._numbers), kind, content, self._lock) as run:
                return run.wait(limits, box)
        except _ZygoteLost as error:
            with self._lock:
                self._stop()
            raise SandboxError(
                f"the process that starts runs has ended: {error}.",
                "qwen_jax.sandbox",
                "run it again; if it repeats, more memory may help.",
            ) from None
        finally:
            if box:
                workdir.remove(box)

    def _started(self) -> socket.socket:
        with self._lock:
            if self._control is None or self._process is None or self._process.poll() is not None:
                self._stop()
                if self._start(self._namespaces):
                    self._start(False)
            assert self._control is not None
            return self._control

    def _start(self, namespaces: bool) -> bool:
        """Starts the zygote; returns whether it must be started again without namespaces."""
        with tempfile.TemporaryDirectory(prefix=f"qwen-jax-zygote-{os.getpid()}-") as folder:
            os.chmod(folder, 0o755)
            for name in ("root", "box"):
                os.mkdir(os.path.join(folder, name))
            if os.geteuid() == 0:
                os.chown(os.path.join(folder, "box"), privileges.NOBODY, privileges.NOBODY)
            secret = os.path.join(folder, "secret")
            with open(secret, "w"):
                os.chmod(secret, 0o666)
            answer = self._ask(
                {
                    "namespaces": namespaces,
                    "readable": profiles.readable(list(self._toolchains)),
                    "needed": [*profiles.interpreter(), *profiles.packages(), *self._toolchains],
                    "packages": profiles.packages(),
                    "package": _PACKAGE,
                    "preload": [*profiles.PRELOAD, *self._preload],
                    "root": os.path.join(folder, "root"),
                    "secret": secret,
                }
            )
        if answer.get("again") and namespaces:
            self._stop()
            return True
        fields = {field.name for field in dataclasses.fields(Layers)}
        found = {name: value for name, value in answer.items() if name in fields}
        self._layers = Layers(**{**found, "namespaces": tuple(found.get("namespaces", ()))})
        if "landlock" not in found:
            self._stop()
            raise SandboxError(
                f"the zygote did not start: {answer.get('error', 'no reason')}.",
                "qwen_jax.sandbox",
                "read the reason above.",
            )
        return False

    def _ask(self, settings: dict) -> dict:
        """Starts a process with settings; returns its answer."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        code = (
            f"import sys; sys.path.append({_PACKAGE!r}); "
            f"from qwen_jax.sandbox.inside.zygote import main; main({theirs.fileno()})"
        )
        # An interpreter of its own: a fork of this process would copy its threads' locks.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", code],
            pass_fds=[theirs.fileno()],
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        ours.settimeout(_START_SECONDS)
        answer = b""
        with contextlib.suppress(OSError):
            ours.sendall(json.dumps(settings).encode())
            answer = ours.recv(1 << 16)
        ours.settimeout(None)
        if answer:
            return json.loads(answer)
        self._process.kill()
        assert self._process.stderr is not None
        return {"error": self._process.stderr.read().decode(errors="replace")[-2000:]}

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(_KILL_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
        self._control = self._process = None


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(qwen_jax.__file__)))


class _ZygoteLost(Exception):
    """The zygote has ended."""


class _Run:
    """The pipes of one run."""

    def __init__(
        self, control: socket.socket, number: int, kind: int, content: bytes, lock: threading.Lock
    ):
        self._control, self._number, self._lock = control, number, lock
        self._status: list[dict[str, Any]] = []
        self._reason = ""
        self._poll = select.poll()
        self._started = time.monotonic()
        self._read: dict[str, int] = {}
        self._data = {name: bytearray() for name in ("stdout", "stderr", "status", "results")}
        theirs = []
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(content)
            try:
                for name in self._data:
                    self._read[name], write = os.pipe()
                    theirs.append(write)
                self._send(kind, [file.fileno(), *theirs])
            except OSError as error:
                raise _ZygoteLost(str(error)) from None
            finally:
                for descriptor in theirs:
                    os.close(descriptor)

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_) -> None:
        if self._read.get("status") is not None and not self._status:
            self._kill("interrupted")  # the caller's Ctrl-C
        for descriptor in self._read.values():
            os.close(descriptor)

    def _send(self, kind: int, descriptors: list[int]) -> None:
        with self._lock:
            message = zygote.MESSAGE.pack(self._number, kind)
            socket.send_fds(self._control, [message], descriptors)

    def _kill(self, reason: str) -> None:
        self._reason = self._reason or reason
        with contextlib.suppress(OSError):
            self._send(zygote.KILL, [])

    def wait(self, limits: Limits, box: str) -> Result:
        """Reads until the run has ended, and kills it at a limit."""
        caps = {"stdout": limits.output, "stderr": limits.output, "results": _MAX_RESULTS}
        names = {descriptor: name for name, descriptor in self._read.items()}
        for descriptor in names:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        end = self._started + limits.wall_seconds
        while not any("exit" in line for line in self._status):
            left = (end if not self._reason else end + _KILL_SECONDS) - time.monotonic()
            wait = min(left, _DISK_POLL) if box else left
            events = self._poll.poll(max(0, math.ceil(wait * 1000)))
            for descriptor, _ in events:
                self._drain(names[descriptor], caps.get(names[descriptor], 1 << 16))
            if not self._reason and box:
                size, files = workdir.usage(box, files=limits.files)
                if size > limits.disk or files > limits.files:
                    self._kill(f"disk: more than {limits.disk} bytes or {limits.files} files")
            if left <= 0 and not events:
                if self._reason:
                    raise _ZygoteLost("it did not end a run that was killed")
                self._kill(f"time: more than {limits.wall_seconds:g} s of wall clock")
                end = time.monotonic()
        for name in ("stdout", "stderr", "results"):
            self._drain(name, caps[name])
        return self._result(limits)

    def _drain(self, name: str, cap: int) -> None:
        """Reads what is there; kills the run when it has written more than `cap`."""
        while True:
            try:
                data = os.read(self._read[name], 1 << 16)
            except BlockingIOError:
                return
            if not data:
                if name == "status" and not any("exit" in line for line in self._status):
                    raise _ZygoteLost("its pipe closed")
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
                self._kill(f"output: more than {cap} bytes of {name}")
                return

    def _ignore(self, name: str) -> None:
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._read[name])

    def _result(self, limits: Limits) -> Result:
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
