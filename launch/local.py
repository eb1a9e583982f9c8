"""Several processes on this computer: a pod on loopback, with the same start, end and restart.

    python -m launch.local --processes=4 --devices=2 -- pretrain --recipe=smoke \\
        --model.unroll_layers=2 --data.sources=...

What follows -- is a page and its flags, or what else Python is given in each process: a script, or
-m and a module. Lines are shown with their process in front.
When a process dies or freezes, the others are taken down, and all are started again: the run goes
on with its newest good checkpoint. SIGTERM and Ctrl-C are handed on, and the run saves before it
ends.

  --processes=2       how many processes
  --devices=1         virtual CPU devices of each (without effect on accelerators)
  --max_restarts=10   how often all start again; an error of the settings or the data ends it
                      at once
  --grace=60          seconds that processes have to save and end, after a signal
  --heartbeat=20      seconds of silence after which a process is taken for dead
  --dry_run           prints what each process would be started with, and starts nothing
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from . import commands

REFUSED = 1  # exit code of an error that would only come again (qwen_jax/parallel/distributed.py)
_MEANING = {
    75: "was told to end by SIGTERM, and the run saved",
    76: "saw a step computed twice with two results",
}
_SAVING = (REFUSED, *_MEANING)  # the others are about to leave as well, and may still be saving
_ASIDE_SECONDS = 5  # that the others have to end by themselves when one is dead
_LAST_LINES = 15


def main(argv: list[str]) -> int:
    options, command = _options(argv)
    if options.dry_run:
        for process in range(options.processes):
            given = _environment(options, process, "127.0.0.1:PORT", 0, "")
            print(
                " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items()),
                shlex.join([sys.executable, *command]),
            )
        return 0
    asked: list[int] = []  # signals
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    reason = ""
    for attempt in range(options.max_restarts + 1):
        life = Life(options, command, attempt, reason)
        death = life.watch(asked)
        if death is None:
            return 0
        _say(death.text)
        for line in death.last_lines:
            _say(f"    {line}")
        if asked:
            return 128 + asked[0]
        if death.code == REFUSED:
            _say("not started again: the error would only come again")
            return REFUSED
        reason = death.text
        if attempt < options.max_restarts:
            _say(f"restart {attempt + 1} of {options.max_restarts}")
            time.sleep(min(2**attempt * 0.25, 30))
    _say(f"given up after {options.max_restarts} restarts")
    return 1


@dataclasses.dataclass(frozen=True)
class Death:
    """The process that ended a life."""

    code: int  # exit code; negative: the signal that killed it
    text: str
    last_lines: list[str]


class Life:
    """All processes from one start to their end."""

    def __init__(self, options, command: list[str], attempt: int, reason: str):
        self._options = options
        address = f"127.0.0.1:{_free_port()}"
        self._lines = [collections.deque(maxlen=_LAST_LINES) for _ in range(options.processes)]
        self._processes, self._readers = [], []
        for process in range(options.processes):
            child = subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | _environment(options, process, address, attempt, reason),
                start_new_session=True,  # a Ctrl-C reaches them through this process alone
                preexec_fn=_end_with_parent,
            )
            reader = threading.Thread(target=self._read, args=(process, child), daemon=True)
            reader.start()
            self._processes.append(child)
            self._readers.append(reader)

    def watch(self, asked: list[int]) -> Death | None:
        """Returns when all processes have ended; the first that went wrong, or None."""
        told, deadline, death, still = 0, None, None, {}
        while None in [child.poll() for child in self._processes]:  # all of them are asked
            if len(asked) > told:
                told = len(asked)
                self._signal(asked[-1])
                deadline = deadline or time.monotonic() + self._options.grace
            if death is None:
                death = self._first_death() or self._frozen(still)
                if death is not None:
                    deadline = min(
                        deadline or float("inf"),
                        time.monotonic()
                        + (self._options.grace if death.code in _SAVING else _ASIDE_SECONDS),
                    )
            if deadline is not None and time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(timeout=5)
        return death or self._first_death()

    def _first_death(self) -> Death | None:
        """The process that went wrong, not those that fell over it."""
        ended = [
            (number, child.returncode)
            for number, child in enumerate(self._processes)
            if child.returncode not in (None, 0)
        ]
        if not ended:
            return None
        time.sleep(0.2)  # for its last lines
        for number, child in enumerate(self._processes):
            if child.returncode is None and _state(child.pid) == "T":  # the other gave it up
                return self._death(number, -signal.SIGSTOP, "is frozen, and others gave it up")
        number, code = min(ended, key=lambda end: end[1] != -signal.SIGKILL)
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else (_MEANING.get(code, f"ended with exit code {code}"))
        )
        return self._death(number, code, how)

    def _frozen(self, still: dict[int, float]) -> Death | None:
        """A process that has been stopped for longer than its heartbeat may fail."""
        for number, child in enumerate(self._processes):
            if child.returncode is None and _state(child.pid) == "T":
                since = still.setdefault(number, time.monotonic())
                if time.monotonic() - since > self._options.heartbeat:
                    return self._death(
                        number, -signal.SIGSTOP, f"has been frozen for {self._options.heartbeat} s"
                    )
            else:
                still.pop(number, None)
        return None

    def _death(self, number: int, code: int, how: str) -> Death:
        return Death(code, f"process {number} {how}", list(self._lines[number]))

    def _signal(self, number: int) -> None:
        for child in self._processes:
            if child.poll() is None:
                child.send_signal(number)

    def _read(self, process: int, child: subprocess.Popen) -> None:
        for raw in child.stdout or ():
            line = raw.decode(errors="replace").rstrip("\n")
            if line.startswith("[Gloo]"):  # tells of every connection
                continue
            self._lines[process].append(line)
            _say(line, process)


def _environment(options, process: int, address: str, attempt: int, reason: str) -> dict[str, str]:
    """What tells a process its place (parallel/distributed.py) and what became of the last."""
    flags = os.environ.get("XLA_FLAGS", "")
    given = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(process),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={options.devices}".strip(),
        "QWEN_JAX_HEARTBEAT_SECONDS": str(options.heartbeat),
        "QWEN_JAX_LAUNCHER": "local",
        "QWEN_JAX_ATTEMPT": str(attempt),
        "PYTHONUNBUFFERED": "1",
    }
    if reason:
        given["QWEN_JAX_RESTARTED_AFTER"] = reason
    return given


def _options(argv: list[str]):
    parser = commands.make_parser(__doc__, "local")
    for name, default in (
        ("processes", 2),
        ("devices", 1),
        ("max_restarts", 10),
        ("grace", 60),
        ("heartbeat", 20),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--dry_run", action="store_true", help=argparse.SUPPRESS)
    options, command = commands.split(parser, argv)
    if min(options.processes, options.devices, options.heartbeat) < 1:
        parser.error("--processes, --devices and --heartbeat are 1 or more")
    return options, command


def _end_with_parent() -> None:
    """In the child: nobody is left behind when the launcher itself is killed (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _state(pid: int) -> str:
    """The kernel's letter for what a process does: T is stopped. Empty where there is no /proc."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _say(line: str, process: int | None = None) -> None:
    print(f"[{'launch' if process is None else process}] {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
