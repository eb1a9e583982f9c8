"""A warm interpreter that forks a process for each run: `python -c "...; main(socket)"`.

It is started once, with no thread, no secret and an empty environment, moves into namespaces where
the kernel permits, and imports what programs import. It reads 8 bytes (run, kind) from its socket,
with the run's descriptors: the request, stdout, stderr, status, results. When the socket closes it
ends, and everything that it started with it.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from typing import Any

from qwen_jax.sandbox.inside import build, cells, lock, processes, python
from qwen_jax.sandbox.kernel import landlock, namespaces, privileges, system

START, START_USUAL, KILL = 0, 1, 2
# What a process is prepared for before its program is known: the limits of most runs.
USUAL_DISK, USUAL_FILES = 64 << 20, 4096
_USUAL = lock.Request(0, 0, USUAL_DISK, USUAL_FILES, "", build=False)
MESSAGE = struct.Struct("=II")
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_RESULTS = 3  # descriptor of the results in a run


def main(descriptor: int) -> None:
    """Serves runs until the socket closes; exits."""
    control = socket.socket(fileno=descriptor)
    settings = json.loads(control.recv(1 << 20))
    try:
        _isolate(control, settings)
    except BaseException:
        control.send(json.dumps({"error": traceback.format_exc()}).encode())
        os._exit(1)


def _isolate(control: socket.socket, settings: dict) -> None:
    """Forks the zygote into new namespaces, if it can; this process then only waits for it."""
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY) if os.path.isdir("/proc") else -1
    if not settings["namespaces"] or system.COLUMN is None:
        _serve(control, settings, (), proc)
    ready, entered = os.pipe(), os.pipe()
    outer = os.fork()
    if outer:
        if os.read(entered[0], 1) == b"y":
            try:
                namespaces.map_users(outer)
                os.write(ready[1], b"y")
            except OSError:
                os.write(ready[1], b"n")
        control.close()
        build._exit_as(os.waitpid(outer, 0)[1])
    privileges.die_with_parent()
    found = namespaces.enter()
    os.write(entered[1], b"y" if found else b"n")
    if not found or os.read(ready[0], 1) != b"y":
        # Namespaces without mapped users are of no use, so the zygote starts again without them.
        os._exit(0 if _again(control, settings) else 1)
    zygote = os.fork()
    if zygote:
        control.close()
        build._exit_as(os.waitpid(zygote, 0)[1])
    privileges.die_with_parent()
    try:
        namespaces.new_root(settings["root"], settings["readable"])
    except OSError:
        os._exit(0 if _again(control, settings) else 1)
    _serve(control, settings, tuple(found), proc)


def _again(control: socket.socket, settings: dict) -> bool:
    control.send(json.dumps({"again": True}).encode())
    return True


def _serve(control: socket.socket, settings: dict, found: tuple[str, ...], proc: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C is for the supervisor
        signal.signal(number, signal.SIG_IGN)
    if system.COLUMN is not None:
        privileges.adopt_orphans()
        privileges.drop_bounding_set()
    for name in settings["preload"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.path = [path for path in sys.path if path != settings["package"]] + settings["packages"]
    for name in [name for name in sys.modules if name.split(".")[0] == "qwen_jax"]:
        del sys.modules[name]  # a run imports what is installed, not these
    setup = _setup(settings, found)
    zygote = Zygote(control, setup, processes.Tree(proc) if proc >= 0 else None)
    gc.collect()
    gc.freeze()  # so that a collection in a run does not copy these pages
    control.send(
        json.dumps(
            {
                "landlock": setup.landlock,
                "seccomp": bool(setup.filters),
                "namespaces": found,
                "user": setup.user,
                **zygote.probe(settings["secret"]),
            }
        ).encode()
    )
    zygote.serve()
    os._exit(0)


def _setup(settings: dict, found: tuple[str, ...]) -> lock.Setup:
    user = None
    if os.geteuid() == 0 and ("mount" in found or privileges.readable_by_all(settings["needed"])):
        user = privileges.NOBODY
    version = landlock.abi()
    opened = []
    if version:
        for path in settings["readable"]:
            with contextlib.suppress(OSError):
                opened.append(landlock.open_path(path))
    devices = [landlock.open_path(path) for path in namespaces.DEVICES] if version else []
    return lock.Setup(
        landlock=version,
        filters=lock.filters(version, found, user) if system.COLUMN is not None else (),
        namespaces=found,
        user=user,
        readable=tuple(opened),
        devices=tuple(devices),
    )


class Zygote:
    """The loop: starts, kills and collects runs."""

    def __init__(self, control: socket.socket, setup: lock.Setup, tree: processes.Tree | None):
        self._control, self._setup, self._tree = control, setup, tree
        self._runs: dict[int, tuple[int, int]] = {}  # process -> (run, its status descriptor)
        self._spare: tuple[int, socket.socket] | None = None  # forked ahead of the next program
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        self._base = _address_bytes()

    def probe(self, secret: str) -> dict[str, Any]:
        """Returns what a locked process is really denied: `files`, `network`, or an `error`.

        Args:
          secret: a file that everybody may read and write, outside of what runs may read.
        """
        read, write = os.pipe()
        if not (child := os.fork()):
            found: dict[str, Any] = {}
            try:
                box = namespaces.BOX if self._setup.namespaces else os.path.dirname(secret) + "/box"
                request = lock.Request(5, 64 << 20, 1 << 20, 100, box, build=False)
                lock.enter_box(self._setup, request)
                lock.give_up(self._setup)
                lock.close_doors(self._setup, request, box, base=self._base)
                found = {"files": _denied(secret), "network": _no_network(self._setup)}
            except BaseException as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            os.write(write, json.dumps(found).encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        return json.loads(answer or '{"error": "the process was killed"}')

    def serve(self) -> None:
        """Returns when the socket closes and no run is left."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            if self._spare is None:
                self._prepare()
            for descriptor, _ in poll.poll():
                if descriptor == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                elif not self._message():
                    self._end()
                    return
            self._collect()

    def _message(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE.size, 5, _CLOSE_ON_EXEC)
        if len(data) < MESSAGE.size:
            return False
        run, kind = MESSAGE.unpack(data)
        if kind == KILL:
            for process, (other, _) in self._runs.items():
                if other == run:
                    os.kill(process, signal.SIGKILL)
        else:
            self._start(run, kind, descriptors)
        return True

    def _prepare(self) -> None:
        """Forks the process of the next program: it waits in its box, so the program need not."""
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            ours.close()
            self._leave_zygote()
            box = lock.enter_box(self._setup, _USUAL) if self._setup.namespaces else ""
            _, descriptors, _, _ = socket.recv_fds(theirs, 1, 5, _CLOSE_ON_EXEC)
            if descriptors:
                self._run(descriptors, box)
            os._exit(0)
        theirs.close()
        self._spare = (child, ours)

    def _start(self, run: int, kind: int, descriptors: list[int]) -> None:
        if kind == START_USUAL and self._spare is not None:
            child, sender = self._spare
            self._spare = None
            with contextlib.suppress(OSError):  # it has died: its end says so
                socket.send_fds(sender, [b"."], descriptors)
            sender.close()
        else:
            child = os.fork()
            if not child:
                self._leave_zygote()
                self._run(descriptors, "")
        self._runs[child] = (run, descriptors[3])
        for descriptor in (*descriptors[:3], *descriptors[4:]):
            os.close(descriptor)

    def _collect(self) -> None:
        while True:
            try:
                process, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            if self._spare is not None and process == self._spare[0]:
                self._spare[1].close()
                self._spare = None
            if process not in self._runs:  # also an orphan
                continue
            _, descriptor = self._runs.pop(process)
            if "pid" not in self._setup.namespaces and self._tree is not None and not self._runs:
                self._kill_orphans()
            line = {
                "exit": os.waitstatus_to_exitcode(status),
                "cpu": used.ru_utime + used.ru_stime,
                "peak": used.ru_maxrss * 1024,
            }
            with contextlib.suppress(OSError):
                os.write(descriptor, json.dumps(line).encode() + b"\n")
            os.close(descriptor)

    def _kill_orphans(self) -> None:
        """Where no pid namespace ends them; programs in Python have none."""
        assert self._tree is not None
        spare = frozenset() if self._spare is None else frozenset({self._spare[0]})
        processes.kill_below(self._tree, keep=spare)

    def _end(self) -> None:
        for process in self._runs:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        # A pid namespace ends with this process, and has other ids than this tree.
        if self._tree is not None and "pid" not in self._setup.namespaces:
            processes.kill_below(self._tree)

    def _leave_zygote(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()

    def _run(self, descriptors: list[int], box: str) -> None:
        """In a new process: locks it and becomes the program; never returns.

        Args:
          box: the folder that it has entered; "": none yet.
        """
        try:
            size = os.fstat(descriptors[0]).st_size
            payload = json.loads(os.pread(descriptors[0], size, 0))
            request = lock.Request(**payload["lock"])
            os.dup2(descriptors[1], 1)
            os.dup2(descriptors[2], 2)
            box = box or lock.enter_box(self._setup, request)
            if request.build:
                self._build(payload, request, box, descriptors[3])
            else:
                self._python(payload, request, box, descriptors[4])
        except BaseException:
            with contextlib.suppress(BaseException):
                line = {"error": traceback.format_exc()[-2000:]}
                os.write(descriptors[3], json.dumps(line).encode() + b"\n")
        os._exit(125)

    def _python(self, payload: dict, request: lock.Request, box: str, results: int) -> None:
        lock.give_up(self._setup)
        _write_files(payload["files"])
        os.environ.update(HOME=box, TMPDIR=box, MPLCONFIGDIR=box)
        sys.path.insert(0, box)
        # Needs the descriptors of Landlock's rules; then all are closed.
        lock.close_doors(self._setup, request, box, base=self._base)
        entry, session = payload.get("entry"), payload.get("session")
        keeps = bool(entry or session)
        os.dup2(results if keeps else 0, _RESULTS)
        os.closerange(_RESULTS + 1 if keeps else _RESULTS, 1 << 20)
        if session:
            cells.serve(_RESULTS)
        elif entry:
            python.calls(payload["code"], entry, payload["inputs"], _RESULTS)
        else:
            python.program(payload["code"])

    def _build(self, payload: dict, request: lock.Request, box: str, status: int) -> None:
        assert self._tree is not None
        owner = -1 if self._setup.user is None else self._setup.user
        _write_files(payload["files"])
        for folder, folders, files in os.walk("."):
            for name in (*folders, *files):
                os.chown(os.path.join(folder, name), owner, owner)
        steps = [
            build.Step(
                [each.replace("{box}", box) for each in step["command"]],
                step["seconds"],
                step["cpu_seconds"],
                step["memory"],
                {name: value.replace("{box}", box) for name, value in step["environment"].items()},
            )
            for step in payload["steps"]
        ]
        outcome = build.run(self._setup, request, steps, self._tree, box)
        os.write(status, build.report(outcome))
        os._exit(0)


def _write_files(files: dict[str, str]) -> None:
    for name, text in files.items():
        if folder := os.path.dirname(name):
            os.makedirs(folder, exist_ok=True)
        with open(name, "w", encoding="utf-8", newline="") as file:
            file.write(text)


def _address_bytes() -> int:
    """Returns the address space that this interpreter takes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with contextlib.suppress(OSError):
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    return 4 * peak


def _denied(secret: str) -> bool:
    for mode in ("r", "a"):
        try:
            with open(secret, mode):
                return False
        except OSError:
            pass
    return True


def _no_network(setup: lock.Setup) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
        return False
    except OSError:
        return True
