"""Faults on purpose: what a run of yours does when something breaks.

    python -m experiments.faults --flip_bit=runs/a        # one bit of the newest checkpoint
    python -m experiments.faults --truncate=runs/a        # one of its files is truncated
    python -m experiments.faults --flip_bit=data/mine/train --folder   # of any folder (shards)
    python -m experiments.faults --kill=PID --process=2   # of the launch.local with this pid
    python -m experiments.faults --freeze=PID --process=2, --term=PID --process=2
    python -m experiments.faults --kill=PID --saving=runs/a  # while a checkpoint is being written

Use a copy of anything that matters. Faults inside of a run (at a step, in one process) are written
in its environment: QWEN_JAX_FAULTS="kill step=12 process=1; nan step=20";
qwen_jax/train/resilience/fault_injection.py has all.
"""

import argparse
import os
import pathlib
import random
import signal
import sys
import time

from qwen_jax.cli import console
from qwen_jax.errors import ConfigError, QwenJaxError
from qwen_jax.train.resilience import fault_injection

_SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "term": signal.SIGTERM}


def main(argv: list[str]) -> None:
    """Damages files, or sends a signal to one process of a launcher."""
    options = parse(argv)
    draw = random.Random(options.seed)
    for name in ("flip_bit", "truncate"):
        if folder := getattr(options, name):
            path = (
                pathlib.Path(folder)
                if options.folder
                else fault_injection.newest_checkpoint(folder)
            )
            print(f"{path}: {getattr(fault_injection, name)(path, draw)}")
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
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--flip_bit", metavar="RUN_DIR")
    what.add_argument("--truncate", "--cut", metavar="RUN_DIR")
    for name in _SIGNALS:
        what.add_argument(f"--{name}", metavar="LAUNCHER_PID", type=int)
    parser.add_argument("--folder", action="store_true", help="the folder itself is meant")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--saving", metavar="RUN_DIR", help="waits until it is saving")
    parser.add_argument("--seed", type=int, help="of the choice; none: another one each time")
    return parser.parse_args(argv)


def send(name: str, launcher: int, process: int) -> None:
    """The signal, to a process of the launcher with this pid."""
    found = fault_injection.worker_pids(launcher)
    if process not in found:
        raise ConfigError(
            f"process {process} is none of {sorted(found)}.",
            f"--{name}={launcher}",
            "name the pid of launch.local.",
        )
    os.kill(found[process], _SIGNALS[name])
    print(f"{_SIGNALS[name].name} to process {process}, pid {found[process]}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except QwenJaxError as error:
        sys.exit(f"{type(error).__name__}:{error}")
