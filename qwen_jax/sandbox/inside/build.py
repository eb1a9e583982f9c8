"""Runs the steps of a language that is compiled, or whose runtime starts threads and processes.

Each step is a program with arguments. A monitor, which this process becomes, watches the processes
of a step: their number, their memory, and a limit of time. Where the kernel permits it, a step is
a pid namespace, which ends with its first process; elsewhere the monitor adopts orphans and kills
until none is left.
"""

import contextlib
import dataclasses
import json
import os
import signal
import time

from qwen_jax.sandbox.inside import lock, processes
from qwen_jax.sandbox.kernel import namespaces, privileges

_POLL = 0.02  # seconds between two looks at the processes
_TASKS = 512  # processes and threads; a JVM has a few dozen


@dataclasses.dataclass(frozen=True)
class Step:
    """One program of a run."""

    command: list[str]
    seconds: float  # of wall clock
    cpu_seconds: float  # of one process
    memory: int  # bytes, of all processes
    environment: dict[str, str]


def run(
    setup: lock.Setup, request: lock.Request, steps: list[Step], tree: processes.Tree, box: str
) -> dict:
    """Runs steps until one fails. The caller has entered the box and holds no secret.

    Returns:
      `step` (index of the last one), `steps` (their number), `status` (negative: a signal),
      `reason` (a limit that ended it, or "").
    """
    privileges.adopt_orphans()
    outcome: dict = {}
    for index, step in enumerate(steps):
        request = dataclasses.replace(request, cpu_seconds=step.cpu_seconds)
        outcome = {"step": index, "steps": len(steps), **_step(setup, request, step, tree, box)}
        if outcome["status"] or outcome["reason"]:
            break
    return outcome


def _step(
    setup: lock.Setup, request: lock.Request, step: Step, tree: processes.Tree, box: str
) -> dict:
    child = os.fork()
    if not child:
        _start(setup, request, step, box)
    end, reason, ended = time.monotonic() + step.seconds, "", 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        found = tree.below(tree.own())
        if time.monotonic() > end:
            reason = f"time: more than {step.seconds:g} s of wall clock"
        elif tree.memory(found) > step.memory:
            reason = f"memory: more than {step.memory >> 20} MB"
        elif tree.tasks(found) > _TASKS:
            reason = f"processes: more than {_TASKS} with their threads"
        if reason:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(_POLL)
    if "pid" in setup.namespaces:  # ends with its first process, and has other ids than the tree
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
    else:
        processes.kill_below(tree)
    code = os.waitstatus_to_exitcode(status)
    if "pid" in setup.namespaces and code > 128:  # from _exit_as
        code = 128 - code
    return {"status": code, "reason": reason}


def _start(setup: lock.Setup, request: lock.Request, step: Step, box: str) -> None:
    """In the child of the monitor: becomes the step, or the parent of its pid namespace."""
    try:
        privileges.die_with_parent()
        if "pid" in setup.namespaces:
            namespaces.new_process_tree()
            if first := os.fork():
                _exit_as(os.waitpid(first, 0)[1])
            privileges.die_with_parent()
            if program := os.fork():
                _collect_until(program)
        os.nice(5)  # the monitor goes first
        lock.give_up(setup)
        lock.close_doors(setup, request, box, base=0)
        os.closerange(3, 1 << 20)
        os.execve(step.command[0], step.command, step.environment)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"{step.command[0]} could not be started: {error}\n".encode())
    os._exit(126)


def _collect_until(program: int) -> None:
    """The first process of a pid namespace: inherits orphans; the kernel kills them as it ends."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == program:
            _exit_as(status)


def _exit_as(status: int) -> None:
    """Ends as a child did; a signal becomes 128 + its number, as in a shell."""
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def report(outcome: dict) -> bytes:
    """Returns the line for the supervisor."""
    return json.dumps(outcome).encode() + b"\n"
