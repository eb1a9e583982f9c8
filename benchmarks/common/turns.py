"""Ours and peers measured in turn, each in a process of its own,
because a machine's speed drifts."""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator

from qwen_jax.parallel.cpu import huge_pages

ROOT = pathlib.Path(__file__).resolve().parents[2]
HUGE = {huge_pages.VARIABLE: huge_pages.SETTING}  # huge pages, as our Makefile has them

# A process: its command, and what it finds in the environment beside what it inherits.
Process = tuple[list[str], dict[str, str]]


def take(
    rounds: int, ours: list[str], peers: Callable[[dict], dict[str, Process]]
) -> Iterator[tuple[int, str, dict]]:
    """(round from 1, who, what it measured), ours first in every round.

    Args:
      ours: the command of our process, which has huge pages.
      peers: what ours measured -> the others by name; they get the same sizes.
    """
    for turn in range(1, rounds + 1):
        measured = run(ours, HUGE)
        yield turn, "ours", measured
        for name, process in peers(measured).items():
            yield turn, name, run(*process)


def run(command: list[str], environment: dict[str, str]) -> dict:
    """The last line of what a process prints, which is JSON."""
    inherited = {name: value for name, value in os.environ.items() if name != huge_pages.VARIABLE}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=inherited | environment
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
