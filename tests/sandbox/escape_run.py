"""Runs attempts of escapes.py in one profile and prints a line of JSON for each.

A program of its own, so that it can be another user, and live where the kernel denies namespaces:
python escape_run.py PACKAGE '{"profile": "build", "deny_unshare": true, "names": null}'
"""

import contextlib
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path[:0] = [sys.argv[1], os.path.dirname(os.path.abspath(__file__))]
SETTINGS = json.loads(sys.argv[2])
TOKEN = "escaped-token-7c1f"
os.environ["SECRET_TOKEN"] = TOKEN

import escapes  # noqa: E402

from qwen_jax.sandbox.inside.processes import Tree  # noqa: E402
from qwen_jax.sandbox.kernel import privileges, seccomp, system  # noqa: E402
from qwen_jax.sandbox.result import Result  # noqa: E402
from qwen_jax.sandbox.supervisor import ENVIRONMENT, Limits, Supervisor  # noqa: E402

SECONDS = {
    True: 1.5,
    False: 20.0,
}  # of an attempt that only time ends, and of others: on a busy machine


def deny_unshare() -> None:
    """As a container does: neither unshare nor setns, for this process and all that it starts."""
    numbers = [(272, 97), (308, 268)]
    code = [(0x20, 0, 0, 0)]
    for number in numbers:
        assert system.COLUMN is not None
        code += [(0x15, 0, 1, number[system.COLUMN]), (0x06, 0, 0, 0x00050001)]
    code.append((0x06, 0, 0, 0x7FFF0000))
    privileges.no_new_privileges()
    seccomp.install(b"".join(struct.pack("=HBBI", *each) for each in code))


class Host:
    """What the attempts aim at: a file, sockets, this process."""

    def __init__(self, folder: str):
        self.folder, self.canary = folder, os.path.join(folder, "canary")
        os.chmod(folder, 0o777)
        pathlib.Path(self.canary).write_text(TOKEN)
        os.chmod(self.canary, 0o666)
        os.utime(self.canary, (1e9, 1e9))
        self.unix = os.path.join(folder, "unix")
        self.abstract = f"\0escape-{os.getpid()}"
        self.sockets = [
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            *(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        ]
        self.sockets[1].bind(("127.0.0.1", 0))
        for each, name in zip(
            self.sockets[2:], (self.unix, self.abstract, f"{self.unix}.dgram"), strict=True
        ):
            each.bind(name)
        for each in (self.unix, f"{self.unix}.dgram"):
            os.chmod(each, 0o777)
        for each in self.sockets:
            each.setblocking(False)
            if each.type == socket.SOCK_STREAM:
                each.listen()
        self.tree = Tree(os.open("/proc", os.O_RDONLY | os.O_DIRECTORY))

    def names(self) -> str:
        values = {
            "CANARY": self.canary,
            "PARENT": os.getpid(),
            "HOST_TCP": self.sockets[0].getsockname()[1],
            "HOST_UDP": self.sockets[1].getsockname()[1],
            "HOST_UNIX": self.unix,
            "HOST_ABSTRACT": self.abstract,
            "TOKEN": TOKEN[::-1],
            "PROFILE": SETTINGS["profile"],
        }
        return "".join(f"{name} = {value!r}\n" for name, value in values.items())

    def damage(self, processes: int) -> str:
        """Returns what an attempt changed here, or ""."""
        state = os.stat(self.canary)
        if pathlib.Path(self.canary).read_text() != TOKEN or state.st_mode & 0o777 != 0o666:
            return "the file outside changed"
        if state.st_mtime != 1e9 or len(os.listdir(self.folder)) != 3:
            return "the folder outside changed"
        for each in self.sockets:
            with contextlib.suppress(BlockingIOError):
                each.accept() if each.type == socket.SOCK_STREAM else each.recv(1)
                return "something was received"
        for path in ("/tmp", "/dev/shm", "/var/tmp"):
            if os.path.exists(f"{path}/qwen-jax-escaped"):
                return f"a file was left in {path}"
        end = time.monotonic() + 5
        while (left := self.processes() - processes) > 0:
            if time.monotonic() > end:
                return f"{left} processes were left"
            time.sleep(0.01)
        boxes = [
            name for name in os.listdir("/tmp") if name.startswith(f"qwen-jax-box-{os.getpid()}-")
        ]
        return "a box was left" if boxes else ""

    def processes(self) -> int:
        return len(self.tree.below(os.getpid()))


def run(supervisor: Supervisor, host: Host, attempt: escapes.Attempt):
    code = escapes.PRELUDE + host.names() + attempt.code
    seconds = SECONDS[attempt.limit == "time"]
    limits = Limits(seconds, 256 << 20, seconds)
    if SETTINGS["profile"] == "none":  # without a sandbox: shows that the attempts can succeed
        command = [sys.executable, "-I", "-S", "-B", "-c", code]
        done = subprocess.run(command, cwd=host.folder, capture_output=True, text=True)
        return Result(not done.returncode, done.stdout, done.stderr, "", 0.0)
    if SETTINGS["profile"] == "python":
        return supervisor.run({"files": {}, "code": code}, limits)
    step = {
        "command": [os.path.realpath(sys.executable), "-I", "-S", "-B", "main.py"],
        "environment": {**ENVIRONMENT, "HOME": "{box}"},
        "seconds": seconds,
        "cpu_seconds": seconds,
        "memory": limits.memory,
    }
    payload = {"files": {"main.py": code}, "steps": [step]}
    return supervisor.run(payload, limits, build_seconds=seconds)


def judge(attempt: escapes.Attempt, result, damage: str) -> str:
    """Returns how an attempt escaped, or ""."""
    if damage:
        return damage
    if "ESCAPED" in result.stdout and SETTINGS["profile"] not in attempt.allowed:
        return result.stdout[-300:]
    if attempt.limit not in ("", "*"):
        if not result.reason.startswith(attempt.limit):
            return f"not ended by {attempt.limit}: {result.reason!r} {result.stderr[-300:]}"
    elif not attempt.limit and "stopped" not in result.stdout and "ESCAPED" not in result.stdout:
        return f"did not run: {result.reason!r} {result.stderr[-500:]}"
    elif attempt.limit and "stopped" not in result.stdout and not result.reason:
        return "ended by nothing"
    return ""


def main() -> None:
    if SETTINGS["deny_unshare"]:
        deny_unshare()
    names = SETTINGS["names"]
    with tempfile.TemporaryDirectory() as folder:
        host = Host(folder)
        supervisor = Supervisor()
        print(
            json.dumps({"layers": str(supervisor.layers), "isolated": supervisor.layers.isolated})
        )
        run(supervisor, host, escapes.Attempt("", "pass"))
        time.sleep(0.3)  # the process of the next program is there
        processes = host.processes()
        for group, attempts in escapes.ATTEMPTS.items():
            for attempt in attempts:
                if names is not None and attempt.name not in names:
                    continue
                if attempt.x86 and system.COLUMN != 0:
                    continue
                result = run(supervisor, host, attempt)
                escaped = judge(attempt, result, host.damage(processes))
                line = {"group": group, "name": attempt.name, "escaped": escaped}
                line |= {"stdout": result.stdout[:200], "reason": result.reason[:100]}
                print(json.dumps(line), flush=True)
        supervisor.close()
        if left := host.processes():
            print(json.dumps({"group": "", "name": "close", "escaped": f"{left} processes"}))


main()
