"""Measures a session of the sandbox: memory and time over thousands of cells.

    python -m benchmarks.sandbox.session

Cells compute, print, write a file and fail, in turns: first in one session, then in sessions that a
cell ends again and again. Memory is that of this process and of all processes of the sandbox, at
every fifth of the cells. Writes benchmarks/results/sandbox_session.md.
"""

import dataclasses
import datetime
import gc
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

from qwen_jax.agent.interpreter import Interpreter
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.sandbox import programs

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results" / "sandbox_session.md"
CELLS = (
    "x = [i * i for i in range(1000)]; sum(x)",
    "print('a line\\n' * 20)",
    "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nf(12)",
    "1 / 0",
    "_ = open('file.txt', 'w').write('text' * 100)",
)
ENDS = "import os; os._exit(1)"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    cells: int = option(2000, "cells of one session, and again with cells that end it")
    ends_every: int = option(20, "in the second half: cells after which one ends the session")
    output: str = option(str(RESULTS), "path of the results")


@dataclasses.dataclass(frozen=True)
class Memory:
    """MB of resident memory, and open descriptors."""

    host: float
    sandbox: float
    descriptors: int
    processes: int


def memory() -> Memory:
    """Returns what this process and its descendants have now."""
    gc.collect()
    sandboxed = list(_descendants(os.getpid()))
    return Memory(
        _resident(os.getpid()),
        sum(map(_resident, sandboxed)),
        len(os.listdir("/proc/self/fd")),
        len(sandboxed),
    )


def run(interpreter: Interpreter, count: int, ends_every: int) -> list[float]:
    """Runs cells; returns the seconds of each that did not end the session.

    Args:
      ends_every: cells after which one ends the session; 0: none does.
    """
    seconds = []
    for index in range(count):
        ends = ends_every > 0 and index % ends_every == ends_every // 2
        begin = time.perf_counter()
        result = interpreter.run(ENDS if ends else CELLS[index % len(CELLS)])
        if ends:
            assert "The session has ended" in result.text, result.text
        else:
            seconds.append(time.perf_counter() - begin)
            assert "The session has ended" not in result.text, result.text
    return seconds


def _measured(interpreter: Interpreter, cells: int, every: int) -> list[str]:
    seconds, rows = [], []
    for index in range(5):
        seconds += run(interpreter, cells // 5, every)
        found = memory()
        print((index + 1) * (cells // 5), found, flush=True)
        rows.append(
            f"| {(index + 1) * (cells // 5)} | {found.host:.1f} | {found.sandbox:.1f} | "
            f"{found.descriptors} | {found.processes} |"
        )
    late = sorted(seconds)[int(0.99 * len(seconds))]
    return [
        f"Median of a cell {1000 * statistics.median(seconds):.2f} ms, 99th percentile "
        f"{1000 * late:.2f} ms.",
        "",
        "| cells | host MB | sandbox MB | descriptors | processes |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _resident(process: int) -> float:
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def _descendants(process: int):
    try:
        tasks = os.listdir(f"/proc/{process}/task")
    except OSError:
        return
    for task in tasks:
        try:
            with open(f"/proc/{process}/task/{task}/children") as file:
                children = [int(child) for child in file.read().split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from _descendants(child)


def main(config: Config) -> None:
    """Measures, and writes the results."""
    lines = [
        "# A session of the sandbox",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {programs.layers()}. Command: `"
        f"{' '.join(['python -m benchmarks.sandbox.session', *sys.argv[1:]])}`.",
    ]
    for title, every in (
        (f"{config.cells} cells in one session", 0),
        (f"{config.cells} cells, every {config.ends_every}th of which ends it", config.ends_every),
    ):
        with tempfile.TemporaryDirectory() as folder:
            interpreter = Interpreter(folder)
            lines += ["", f"## {title}", "", *_measured(interpreter, config.cells, every)]
            interpreter.close()
    pathlib.Path(config.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
