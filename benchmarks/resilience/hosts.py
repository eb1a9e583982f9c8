"""What each process of a run prints, and its exit code, if one of them is lost or late.

    python -m benchmarks.resilience.hosts [frozen late ...]

Two processes on this computer train without a launcher, so each has an exit code of its own; a
launcher would restart them after it, or not. The table joins benchmarks/results/launchers.md; rows
of faults that are not named stay.
"""

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.common.timing import machine
from qwen_jax import exit_codes
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.resilience import fault_injection

PAGE = pathlib.Path(__file__).parents[1] / "results/launchers.md"
START, END = "<!-- hosts -->\n", "<!-- end of hosts -->\n"
HANG = "--train.hang_seconds=5"
# Lines that say nothing about the end of a process.
_NOISE = re.compile(r"^\[Gloo\]|^\s|^process \d of|^(File|Thread|Current thread) |^$|^\*\*\*|^@")


@dataclasses.dataclass(frozen=True)
class End:
    """How one process ended."""

    fault: str
    process: int
    code: int
    said: str

    def row(self) -> str:
        restart = "yes" if exit_codes.restarts(self.code) else "no"
        return f"| {self.fault} | {self.process} | {self.code} | {restart} | {self.said} |"


class Bench:
    """Runs of two processes in one folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        words = np.random.default_rng(0)
        text = [
            Document(str(i), " ".join(words.choice(["a", "bc", "def", "gh"], 50)))
            for i in range(200)
        ]
        shards.write(text, folder / "words", Tokenizer({bytes([b]): b for b in range(256)}))

    def start(
        self,
        run: str,
        process: int,
        port: int,
        *flags: str,
        count: int = 2,
        more: Mapping[str, str] | None = None,
    ) -> subprocess.Popen:
        """Starts one process; its output goes to a file."""
        environ = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": os.environ.get(
                "JAX_COMPILATION_CACHE_DIR", str(self.folder / "compiled")
            ),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "PYTHONPATH": os.getcwd(),
            "QWEN_JAX_LAUNCHER": "local",
            "QWEN_JAX_HEARTBEAT_SECONDS": "60",
        }
        if count > 1:
            environ |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(process),
            }
        run_dir = pathlib.Path(run) if run.startswith("own") else self.folder / run
        here = self.folder / f"host-{process}"
        here.mkdir(exist_ok=True)
        with open(self.output(run, process), "wb") as output:
            return subprocess.Popen(
                [
                    *[sys.executable, "-m", "benchmarks.resilience.cached"],
                    *["experiments.pretrain", "--recipe=smoke", f"--run_dir={run_dir}"],
                    *[f"--data.sources={self.folder}/words/train", "--train.num_steps=100000"],
                    *["--model.hidden_size=32", "--model.ffn_size=64", "--model.num_layers=1"],
                    *["--model.unroll_layers=1", "--train.log_every=1", *flags],
                ],
                cwd=here,
                env=environ | dict(more or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def output(self, run: str, process: int) -> pathlib.Path:
        return self.folder / f"{run}-{process}.txt"

    def pair(self, run: str, *flags: str, late: float = 0, **more: str) -> list[subprocess.Popen]:
        port = free_port()
        first = self.start(run, 0, port, *flags, more=more)
        time.sleep(late)
        return [first, self.start(run, 1, port, *flags, more=more)]

    def wait_for(self, run: str, text: str, process: int = 0) -> None:
        deadline = time.monotonic() + 1200
        while text not in self.output(run, process).read_text(errors="replace"):
            if time.monotonic() > deadline:
                shown = self.output(run, process).read_text(errors="replace")
                raise TimeoutError(f"{run}: no {text!r} in\n{shown[-3000:]}")
            time.sleep(0.05)

    def ends(self, fault: str, run: str, processes: dict[int, subprocess.Popen]) -> list[End]:
        """Waits for the processes; those that are stopped are killed."""
        found = []
        for number, child in processes.items():
            try:
                code = child.wait(timeout=1200)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                found.append(End(fault, number, child.returncode, "did not end; ended by hand"))
                continue
            found.append(End(fault, number, code, self.said(run, number)))
        return found

    def said(self, run: str, process: int) -> str:
        """Returns what the process printed about its end, on one line."""
        text = self.output(run, process).read_text(errors="replace")
        text = text.replace(str(self.folder), "FOLDER").replace(socket.gethostname(), "HOST")
        if found := re.search(r"^\w+Error:\n\s+what: +(.*)\n\s+where: +(.*)$", text, re.MULTILINE):
            return f"{found[1]} ({found[2]})"
        lines = [line for line in text.splitlines() if not _NOISE.match(line)]
        wanted = r"no step for|did not arrive|stacks of all|Error|ERROR|stopped at|Terminating"
        chosen = [line for line in lines if re.search(wanted, line)] or lines[-1:]
        return "; ".join(line.replace("|", "\\|")[:300] for line in chosen[:4])


def killed_in_a_save(bench: Bench) -> list[End]:
    children = bench.pair("killed", "--train.save_every=5")
    while fault_injection.unfinished_save(bench.folder / "killed") is None:
        time.sleep(0.002)
    children[1].kill()
    return bench.ends("process 1 is killed in a save", "killed", dict(enumerate(children)))


def frozen(bench: Bench) -> list[End]:
    children = bench.pair("frozen", HANG, QWEN_JAX_HEARTBEAT_SECONDS="300")
    bench.wait_for("frozen", "step 3")
    children[1].send_signal(signal.SIGSTOP)
    found = bench.ends("process 1 is frozen (SIGSTOP)", "frozen", {0: children[0]})
    children[1].kill()
    return found


def stuck(bench: Bench) -> list[End]:
    children = bench.pair("stuck", HANG, QWEN_JAX_FAULTS="delay step=9 process=1 seconds=900")
    return bench.ends("process 1 waits for data forever", "stuck", dict(enumerate(children)))


def never_started(bench: Bench) -> list[End]:
    found = []
    for process in range(2):
        run = f"alone-{process}"
        child = bench.start(run, process, free_port(), more={"QWEN_JAX_START_SECONDS": "5"})
        missing = f"process {1 - process} is never started"
        found += bench.ends(f"{missing} (limit 5 s)", run, {process: child})
    return found


def late(bench: Bench) -> list[End]:
    children = bench.pair("late", "--train.num_steps=3", "--optimizer.warmup_steps=1", late=8)
    return bench.ends("process 1 starts 8 s late", "late", dict(enumerate(children)))


def two_runs(bench: Bench) -> list[End]:
    first = bench.start("two", 0, 0, count=1)
    bench.wait_for("two", "step 2")
    second = bench.start("two", 1, 0, count=1)
    found = bench.ends("a second run on the same folder", "two", {1: second})
    first.terminate()
    return found + bench.ends("the first one of them, after SIGTERM", "two", {0: first})


def unshared(bench: Bench) -> list[End]:
    children = bench.pair("own-run")
    return bench.ends("run_dir is another folder on host 1", "own-run", dict(enumerate(children)))


FAULTS: tuple[Callable[[Bench], list[End]], ...] = (
    killed_in_a_save,
    frozen,
    stuck,
    never_started,
    late,
    two_runs,
    unshared,
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def main() -> None:
    chosen = sys.argv[1:] or [fault.__name__ for fault in FAULTS]
    if not set(chosen) <= {fault.__name__ for fault in FAULTS}:
        print(__doc__)
        return
    rows: list[End] = []
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
        bench = Bench(pathlib.Path(folder))
        for fault in [fault for fault in FAULTS if fault.__name__ in chosen]:
            found = fault(bench)
            rows += found
            print("\n".join(each.row() for each in found), flush=True)
            _write(rows)


def _write(rows: list[End]) -> None:
    versions = ", ".join(f"{name} {value}" for name, value in machine().items() if value)
    page = PAGE.read_text(encoding="utf-8")
    new = {each.fault for each in rows}
    kept = [
        line
        for line in page.partition(START)[2].partition(END)[0].splitlines()
        if re.match(r"\| .* \| \d \| -?\d+ \|", line) and line[2:].partition(" |")[0] not in new
    ]
    head = ["| fault | process | exit code | restart | what it printed |", "|---|---|---|---|---|"]
    table = "\n".join([*head, *kept, *(each.row() for each in rows)])
    text = f"{START}`python -m benchmarks.resilience.hosts`. {versions}.\n\n{table}\n{END}"
    before, after = page.partition(START)[0], page.partition(END)[2]
    PAGE.write_text(before + text + after, encoding="utf-8")


if __name__ == "__main__":
    main()
