"""Measures short Python programs in the sandbox, next to `subprocess` without any isolation.

    python -m benchmarks.sandbox.latency [--runs=1000]

One program of each kind after the other, in turn, so the load of the machine is the same for all.
Writes benchmarks/results/sandbox.md.
"""

import dataclasses
import datetime
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.sandbox.supervisor import Limits, Supervisor

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results" / "sandbox.md"
PROGRAM = "def f(x):\n    return sorted(x)[0]\nassert f([3, 1, 2]) == 1\nprint('ok')\n"
_LIMITS = Limits(10.0, 256 << 20, 10.0)
_THREADS = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    runs: int = option(1000, "runs of each kind")
    output: str = option(str(RESULTS), "path of the results")


def subprocess_alone(*flags: str) -> Callable[[], str]:
    """Returns a function that runs the program in an interpreter of its own."""
    command = [sys.executable, *flags, "-c", PROGRAM]
    return lambda: subprocess.run(command, capture_output=True, text=True, timeout=10).stdout


def measure(kinds: dict[str, Callable[[], str]], runs: int) -> dict[str, list[float]]:
    """Returns the seconds of each run by kind."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(runs):
        for name, run in kinds.items():
            began = time.perf_counter()
            printed = run()
            seconds[name].append(time.perf_counter() - began)
            if printed != "ok\n":
                raise SystemExit(f"{name} printed {printed!r}")
    return seconds


def at_once(run: Callable[[], str], runs: int) -> float:
    """Returns runs per second of _THREADS threads."""
    began = time.perf_counter()
    threads = [
        threading.Thread(target=lambda: [run() for _ in range(runs // _THREADS)])
        for _ in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return runs // _THREADS * _THREADS / (time.perf_counter() - began)


def in_sandbox(supervisor: Supervisor) -> Callable[[], str]:
    """Returns a function that runs the program in the sandbox."""
    return lambda: supervisor.run({"files": {}, "code": PROGRAM}, _LIMITS).stdout


def main(config: Config) -> None:
    began = time.perf_counter()
    supervisor, without = Supervisor(), Supervisor(namespaces=False)
    ours = in_sandbox(supervisor)
    ours()
    cold = time.perf_counter() - began
    kinds = {
        "sandbox, all layers": ours,
        "sandbox without namespaces": in_sandbox(without),
        "`subprocess`: python -c": subprocess_alone(),
        "`subprocess`: python -I -S -c": subprocess_alone("-I", "-S"),
    }
    measure(kinds, 20)
    seconds = measure(kinds, config.runs)
    first = list(kinds)[0]
    median = {name: statistics.median(each) for name, each in seconds.items()}
    tenths = {name: statistics.quantiles(each, n=10) for name, each in seconds.items()}
    rows = [
        f"| {name} | {1e3 * median[name]:.1f} | {1e3 * tenths[name][0]:.1f} "
        f"| {1e3 * tenths[name][-1]:.1f} | {median[name] / median[first]:.2f} "
        f"| {at_once(run, config.runs // 4):.0f} |"
        for name, run in kinds.items()
    ]
    text = "\n".join(
        [
            f"`python -m benchmarks.sandbox.latency --runs={config.runs}`, "
            f"{datetime.date.today().isoformat()}, Linux {platform.release()}, "
            f"{os.cpu_count()} CPUs, Python {platform.python_version()}; load of the machine at "
            f"the end: {', '.join(f'{load:.1f}' for load in os.getloadavg())}.",
            "",
            f"Layers: {supervisor.layers}.",
            "",
            f"| {config.runs} short programs, in turn | median ms | 10 % | 90 % | median / ours "
            f"| runs/s, {_THREADS} threads |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"The first program, with the start of the zygote: {1e3 * cold:.0f} ms.",
        ]
    )
    print(text)
    pathlib.Path(config.output).write_text(f"# Sandbox: time of a short program\n\n{text}\n")
    supervisor.close()
    without.close()


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
