"""Starts several processes on this computer: a simulated pod, restarted like a real one.

    python -m launch.local --processes=4 --devices=2 -- pretrain --recipe=smoke \\
        --model.unroll_layers=2 --data.sources=...

The command after -- is an experiment with its flags, or other arguments for Python: a script, or -m
and a module. Output lines have the process index as prefix.
If a process dies or freezes, the others are ended and all restart: the run resumes from its newest
good checkpoint. SIGTERM and Ctrl-C are forwarded, and the run saves a checkpoint before it exits.

  --processes=2       number of processes
  --devices=1         virtual CPU devices per process (no effect on accelerators)
  --max_restarts=10   maximum number of restarts; an error in the settings or the data is not
                      retried
  --grace=60          seconds for processes to save and exit after a signal
  --heartbeat=20      seconds of silence after which a process counts as dead
  --dry_run           print the command of each process, but do not start it
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

from qwen_jax import exit_codes
from qwen_jax.utils.best_effort import keep_going

from . import commands

_MEANING = {
    exit_codes.DISK_FULL: "found a full disk",
    exit_codes.UNREADABLE: "could not read its storage",
    exit_codes.PREEMPTED: "was stopped by SIGTERM after saving a checkpoint",
    exit_codes.SDC: "computed a step twice with two results",
    exit_codes.LOST_PROCESS: "found that another process is missing",
    exit_codes.FOLDER_IN_USE: "found that another process holds the run folder",
}
# Exit codes after which other processes may still be saving.
_SAVING = (exit_codes.REFUSED, exit_codes.PREEMPTED, exit_codes.SDC)
# Exit codes that are never the result of another process's death.
_CAUSES = (exit_codes.DISK_FULL, exit_codes.FOLDER_IN_USE)
_EXIT_SECONDS = 5  # time for the other processes to exit if one is dead
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
    with keep_going():  # the processes write to pipes that this one must read
        return launch(options, command)


def launch(options, command: list[str]) -> int:
    """Starts the processes until they succeed or a restart is of no use; returns the exit code."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))
    reason = ""
    for number in range(options.max_restarts + 1):
        death = Attempt(options, command, number, reason).watch(signals)
        if death is None:
            return 0
        _log(death.text)
        for line in death.last_lines:
            _log(f"    {line}")
        if signals:
            return 128 + signals[0]
        if not exit_codes.restarts(death.code):
            _log("not restarted: a restart would repeat the error")
            return death.code
        reason = death.text
        if number < options.max_restarts:
            _log(f"restart {number + 1} of {options.max_restarts}")
            time.sleep(min(2**number * 0.25, 30))
    _log(f"stopped after the maximum of {options.max_restarts} restarts")
    return 1


@dataclasses.dataclass(frozen=True)
class Death:
    """The process that ended an attempt."""

    code: int  # exit code; negative: the signal that killed it
    text: str
    last_lines: list[str]


class Attempt:
    """All processes of one attempt of the run."""

    def __init__(self, options, command: list[str], number: int, reason: str):
        self._options = options
        address = f"127.0.0.1:{_free_port()}"
        self._lines = [collections.deque(maxlen=_LAST_LINES) for _ in range(options.processes)]
        self._processes, self._readers = [], []
        for process in range(options.processes):
            child = subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | _environment(options, process, address, number, reason),
                start_new_session=True,  # forward Ctrl-C only from this process
                preexec_fn=_end_with_parent,
            )
            reader = threading.Thread(target=self._read, args=(process, child), daemon=True)
            reader.start()
            self._processes.append(child)
            self._readers.append(reader)

    def watch(self, signals: list[int]) -> Death | None:
        """Waits until all processes exit; returns the first that failed, or None."""
        forwarded, deadline, death, stopped_since = 0, None, None, {}
        while None in [child.poll() for child in self._processes]:  # polls all of them
            if len(signals) > forwarded:
                forwarded = len(signals)
                self._signal(signals[-1])
                deadline = deadline or time.monotonic() + self._options.grace
            if death is None:
                death = self._first_death() or self._frozen(stopped_since)
                if death is not None:
                    deadline = min(
                        deadline or float("inf"),
                        time.monotonic()
                        + (self._options.grace if death.code in _SAVING else _EXIT_SECONDS),
                    )
            if deadline is not None and time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(timeout=5)
        first = self._first_death()
        if death is None or first is None:
            return first or death
        # A process that failed before another one noticed it; not one that this launcher killed.
        own = first.code != -signal.SIGKILL and not exit_codes.is_consequence(first.code)
        cause = own and exit_codes.is_consequence(death.code)
        return first if first.code in _CAUSES or cause else death

    def _first_death(self) -> Death | None:
        """Returns the process that failed first, not those that failed as a result."""
        exited = [
            (number, child.returncode)
            for number, child in enumerate(self._processes)
            if child.returncode not in (None, 0)
        ]
        if not exited:
            return None
        time.sleep(0.2)  # to receive its last lines of output
        for number, child in enumerate(self._processes):
            if child.returncode is None and _state(child.pid) == "T":  # others timed out on it
                return self._death(number, -signal.SIGSTOP, "is frozen, and others timed out on it")
        number, code = min(
            exited,
            key=lambda item: (
                item[1] not in _CAUSES,
                item[1] != -signal.SIGKILL,
                exit_codes.is_consequence(item[1]),
            ),
        )
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else (_MEANING.get(code, f"exited with code {code}"))
        )
        return self._death(number, code, how)

    def _frozen(self, stopped_since: dict[int, float]) -> Death | None:
        """Returns a process that has been stopped for longer than the heartbeat timeout."""
        for number, child in enumerate(self._processes):
            if child.returncode is None and _state(child.pid) == "T":
                since = stopped_since.setdefault(number, time.monotonic())
                if time.monotonic() - since > self._options.heartbeat:
                    return self._death(
                        number, -signal.SIGSTOP, f"has been frozen for {self._options.heartbeat} s"
                    )
            else:
                stopped_since.pop(number, None)
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
            if line.startswith("[Gloo]"):  # logs every connection
                continue
            self._lines[process].append(line)
            _log(line, process)


def _environment(options, process: int, address: str, attempt: int, reason: str) -> dict[str, str]:
    """Returns the environment of a process (see parallel/distributed.py)."""
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
        parser.error("--processes, --devices and --heartbeat must be 1 or more")
    return options, command


def _end_with_parent() -> None:
    """Runs in the child process: on Linux, the child is killed if the launcher dies."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _state(pid: int) -> str:
    """Returns the state letter of a process from /proc (T: stopped), or '' without /proc."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _log(line: str, process: int | None = None) -> None:
    print(f"[{'launch' if process is None else process}] {line}", flush=True)


if __name__ == "__main__":
    commands.exit_with(main)
