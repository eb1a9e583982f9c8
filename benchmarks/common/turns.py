"""Measures our code and its peers alternately, each in a separate process.

Measurements alternate because the speed of a machine drifts.
"""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator

from qwen_jax.parallel.cpu import huge_pages

ROOT = pathlib.Path(__file__).resolve().parents[2]
HUGE = {huge_pages.VARIABLE: huge_pages.SETTING}  # huge pages, as set by the Makefile

# A process: its command, and environment variables to add to the inherited ones.
Process = tuple[list[str], dict[str, str]]


def take(
    rounds: int, ours: list[str], peers: Callable[[dict], dict[str, Process]]
) -> Iterator[tuple[int, str, dict]]:
    """Yields (round, counted from 1, name, measurement); ours comes first in every round.

    Args:
      ours: command of our process, which runs with huge pages.
      peers: function from our measurement to the peer processes by name, run at the same sizes.
    """
    for turn in range(1, rounds + 1):
        measured = run(ours, HUGE)
        yield turn, "ours", measured
        for name, process in peers(measured).items():
            yield turn, name, run(*process)


def run(command: list[str], environment: dict[str, str]) -> dict:
    """Runs a process and returns its last line of output, parsed as JSON."""
    inherited = {name: value for name, value in os.environ.items() if name != huge_pages.VARIABLE}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=inherited | environment
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
