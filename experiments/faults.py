"""Injects a fault into a run, to test how it recovers.

    python -m experiments.faults --flip_bit=runs/a        # flip a bit of the newest checkpoint
    python -m experiments.faults --truncate=runs/a        # truncate a file of the newest checkpoint
    python -m experiments.faults --flip_bit=data/mine/train --folder   # of a file in this folder
    python -m experiments.faults --kill=PID --process=2   # kill a process of launch.local (PID)
    python -m experiments.faults --freeze=PID --process=2
    python -m experiments.faults --term=PID --process=2
    python -m experiments.faults --kill=PID --saving=runs/a  # while it writes a checkpoint

Use a copy of any data that you need. To inject a fault inside a run, at a given step and process,
set this variable in its environment: QWEN_JAX_FAULTS="kill step=12 process=1; nan step=20".
qwen_jax/train/resilience/fault_injection.py lists all faults.
"""

import argparse
import os
import pathlib
import random
import signal
import sys
import time

from qwen_jax.cli import console
from qwen_jax.config import warn_renamed
from qwen_jax.errors import ConfigError, QwenJaxError
from qwen_jax.train.resilience import fault_injection

_DAMAGE = {"flip_bit": fault_injection.flip_bit, "truncate": fault_injection.truncate}
_SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "term": signal.SIGTERM}


def main(argv: list[str]) -> None:
    """Corrupts a file, or sends a signal to one process of a launcher."""
    options = parse(argv)
    rng = random.Random(options.seed)
    for name, damage in _DAMAGE.items():
        if folder := getattr(options, name):
            path = (
                pathlib.Path(folder)
                if options.folder
                else fault_injection.newest_checkpoint(folder)
            )
            print(f"{path}: {damage(path, rng)}")
    for name in _SIGNALS:
        if launcher := getattr(options, name):
            while options.saving and fault_injection.unfinished_save(options.saving) is None:
                time.sleep(0.001)
            send(name, launcher, options.process)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.faults",
        description=console.as_typed(__doc__ or "", __package__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fault = parser.add_mutually_exclusive_group(required=True)
    for name, text in (
        ("flip_bit", "flip one bit of a file of the newest checkpoint in RUN_DIR"),
        ("truncate", "truncate a file of the newest checkpoint in RUN_DIR"),
    ):
        fault.add_argument(f"--{name}", metavar="RUN_DIR", help=text)
    for name, number in _SIGNALS.items():
        text = f"send {number.name} to one process of the launch.local with this process id"
        fault.add_argument(f"--{name}", metavar="LAUNCHER_PID", type=int, help=text)
    parser.add_argument(
        "--folder", action="store_true", help="damage a file of RUN_DIR itself, not of a checkpoint"
    )
    parser.add_argument(
        "--process", type=int, default=0, help="index of the process that receives the signal"
    )
    parser.add_argument(
        "--saving", metavar="RUN_DIR", help="wait until this run is writing a checkpoint"
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="random seed for the choice of file and position; default: a new one each time",
    )
    return parser.parse_args([_with_current_name(argument) for argument in argv])


def _with_current_name(argument: str) -> str:
    """Replaces the former flag --cut by --truncate, with a warning."""
    name, equals, value = argument.partition("=")
    if name != "--cut":
        return argument
    warn_renamed("--cut", "--truncate", "the command line")
    return f"--truncate{equals}{value}"


def send(name: str, launcher: int, process: int) -> None:
    """Sends the signal `name` to one process of the launcher with this process ID.

    Raises:
      ConfigError: the launcher has no such process.
    """
    found = fault_injection.worker_pids(launcher)
    if process not in found:
        raise ConfigError(
            f"the launcher has no process {process}; its processes are {sorted(found)}.",
            f"--{name}={launcher}",
            "pass the process ID of launch.local, and set --process to one of its processes.",
        )
    os.kill(found[process], _SIGNALS[name])
    print(f"sent {_SIGNALS[name].name} to process {process}, pid {found[process]}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except QwenJaxError as error:
        sys.exit(f"{type(error).__name__}:{error}")
