"""Starts the zygote and sends it runs."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading

import qwen_jax
from qwen_jax.sandbox import profiles, workdir
from qwen_jax.sandbox.inside import zygote
from qwen_jax.sandbox.isolation import Layers, SandboxError
from qwen_jax.sandbox.kernel import privileges
from qwen_jax.sandbox.pipes import KILL_SECONDS, Run, ZygoteLost
from qwen_jax.sandbox.pipes import Limits as Limits
from qwen_jax.sandbox.result import Result

_START_SECONDS = 300.0  # a few, on a machine that is not busy
_BUILD_DISK, _BUILD_FILES = 512 << 20, 32768  # Go's cache has the standard library
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}


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
        limits, kind, content, box = self._prepared(payload, limits, build_seconds)
        control = self._started()
        try:
            with Run(control, next(self._numbers), kind, content, self._lock) as run:
                return run.wait(limits, box)
        except ZygoteLost as error:
            raise self._lost(error) from None
        finally:
            if box:
                workdir.remove(box)

    def open(self, payload: dict, limits: Limits, channel: socket.socket) -> tuple[Run, str]:
        """Starts a session, which gets `channel` instead of a pipe for results.

        Returns:
          The run, and its folder, which the caller removes after its end; "": it removes itself.
        """
        _, kind, content, box = self._prepared(payload, limits, 0.0)
        try:
            run = Run(self._started(), next(self._numbers), kind, content, self._lock, channel)
        except ZygoteLost as error:
            if box:
                workdir.remove(box)
            raise self._lost(error) from None
        return run, box

    def _prepared(
        self, payload: dict, limits: Limits, build_seconds: float
    ) -> tuple[Limits, int, bytes, str]:
        """Returns the limits of a run, its kind of start, its request, and its folder, if any."""
        self._started()
        box = ""
        if not self._layers.namespaces:
            box = tempfile.mkdtemp(prefix=f"qwen-jax-box-{os.getpid()}-")
            if self._layers.user is not None:
                os.chown(box, self._layers.user, self._layers.user)
        if build_seconds:
            wall = build_seconds + KILL_SECONDS
            limits = dataclasses.replace(
                limits,
                wall_seconds=wall,
                seconds=math.inf,
                disk=_BUILD_DISK,
                files=_BUILD_FILES,
            )
        request = {
            "cpu_seconds": limits.seconds,
            "memory": limits.memory,
            "disk": limits.disk,
            "files": limits.files,
            "box": box,
            "build": "steps" in payload,
        }
        usual = limits.disk, limits.files, "steps" in payload
        usual = usual == (zygote.USUAL_DISK, zygote.USUAL_FILES, False)
        kind = zygote.START_USUAL if usual else zygote.START
        return limits, kind, json.dumps({**payload, "lock": request}).encode(), box

    def _lost(self, error: ZygoteLost) -> SandboxError:
        with self._lock:
            self._stop()
        return SandboxError(
            f"the process that starts runs has ended: {error}.",
            "qwen_jax.sandbox",
            "run it again; if it repeats, more memory may help.",
        )

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
                self._process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
        self._control = self._process = None


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(qwen_jax.__file__)))
