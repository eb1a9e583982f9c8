"""Injects every kind of fault and measures its cost; writes benchmarks/results/faults.md.

    python -m benchmarks.resilience.faults --repeats=10

Faults are injected repeatedly into a small pretraining run of two processes (launch.local). Its
losses are compared bit by bit with the losses of an undisturbed run. A batch that is read twice,
skipped or read in a different order would change them. Lost steps are the steps between the latest
checkpoint and the fault. Checkpoints are written in the background, and an incomplete checkpoint
does not count, so a kill right after a save can also lose the steps of that save. If the latest
checkpoint is corrupted, the steps since the previous checkpoint are lost as well.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np

from benchmarks.common.timing import machine
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.errors import DataError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.resilience import fault_injection
from qwen_jax.utils.jsonl import read_rows

SAVE_EVERY = 4
WINDOW = 8  # average number of steps between faults


@dataclasses.dataclass
class Row:
    """One row of the table."""

    fault: str
    times: int
    seen: str  # the message that the user sees
    lost: list[int]  # number of lost steps for each fault
    same: bool | None  # whether losses equal the undisturbed run's; None: not compared
    survived: str


class Bench:
    """Runs of one model on one text, with faults."""

    def __init__(self, folder: pathlib.Path, repeats: int, processes: int, heartbeat: int):
        self.folder, self.repeats, self.processes = folder, repeats, processes
        self.heartbeat = heartbeat
        self.steps = WINDOW * (repeats + 1)
        self.rng = random.Random(0)
        words = np.random.default_rng(0)
        text = [
            Document(str(i), " ".join(words.choice(["a", "bc", "def", "gh"], 50)))
            for i in range(200)
        ]
        shards.write(text, folder / "words", Tokenizer({bytes([b]): b for b in range(256)}))
        self.launch("undisturbed")
        self.undisturbed = self.losses("undisturbed")

    def command(
        self, run: str, *flags: str, restarts: int | None = None, processes: int | None = None
    ) -> list[str]:
        processes = processes or self.processes
        return [
            sys.executable,
            "-m",
            "launch.local",
            f"--processes={processes}",
            f"--devices={self.processes // processes}",
            f"--heartbeat={self.heartbeat}",
            f"--max_restarts={self.repeats + 2 if restarts is None else restarts}",
            "--",
            "-m",
            "benchmarks.resilience.cached",
            "experiments.pretrain",
            "--recipe=smoke",
            f"--run_dir={self.folder / run}",
            f"--data.sources={self.folder}/words/train",
            "--model.hidden_size=32",
            "--model.unroll_layers=2",
            f"--train.num_steps={self.steps}",
            "--train.log_every=1",
            f"--train.save_every={SAVE_EVERY}",
            *flags,
        ]

    def environment(self, faults: str = "") -> dict[str, str]:
        return os.environ | {
            fault_injection.VARIABLE: faults,
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def launch(self, run: str, faults: str = "", *flags: str, **settings):
        """Runs the launcher until it exits; returns its exit code and output."""
        done = subprocess.run(
            self.command(run, *flags, **settings),
            text=True,
            env=self.environment(faults),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.returncode, done.stdout

    def losses(self, run: str) -> dict[int, float]:
        return {
            record["step"]: record["train/loss"]
            for _, record in read_rows(self.folder / run / "metrics.jsonl")
            if "train/loss" in record
        }

    def events(self, run: str, *names: str) -> list[dict]:
        events = read_rows(self.folder / run / "events.jsonl")
        return [event for _, event in events if event["event"] in names]

    def same(self, run: str) -> bool:
        return self.losses(run) == self.undisturbed

    def random_steps(self) -> list[int]:
        """Returns one random step per window, after the first checkpoint."""
        return [
            WINDOW * (attempt + 1) + self.rng.randrange(-WINDOW // 2 + 1, WINDOW // 2)
            for attempt in range(self.repeats)
        ]

    # One fault per attempt, in a random process at a random step; the launcher restarts the run.
    def in_attempts(self, kind: str, message: str) -> Row:
        return self._in_attempts(
            kind, message, kind, lambda: f" process={self.rng.randrange(self.processes)}"
        )

    # The same for a bit of the weights, which all processes share; every step is computed twice.
    def corrupt(self, processes: int) -> Row:
        name = (
            f"a wrong bit in one computation, train.sdc_check_every=1, {processes} process"
            + "es" * (processes > 1)
        )
        return self._in_attempts(
            "corrupt",
            "two computations",
            name,
            str,
            "--train.sdc_check_every=1",
            processes=processes,
        )

    def _in_attempts(self, kind: str, message: str, name: str, where, *flags, **settings) -> Row:
        steps = self.random_steps()
        # A signal takes effect after one or two seconds, so steps are delayed on fast machines.
        slower = "; delay step={0} attempt={1} seconds=0.5" if kind == "term" else ""
        faults = "; ".join(
            f"{kind} step={step} attempt={attempt}{where()}" + slower.format(step, attempt)
            for attempt, step in enumerate(steps)
        )
        run = name.replace(" ", "_")
        code, output = self.launch(run, faults, *flags, **settings)
        restarts = self.events(run, "start", "resume")[1:]
        # After a signal, the run computes a few more steps and then saves, so no step is lost.
        lost = [
            max(step - 1 - event["step"], 0) for step, event in zip(steps, restarts, strict=False)
        ]
        seen = next((line for line in output.splitlines() if message in line), "nothing")
        return Row(name, len(restarts), seen.strip(), lost, self.same(run), _outcome(code))

    # Each attempt ends with a kill, after which the latest checkpoint is corrupted.
    def in_checkpoints(self, kind: str) -> Row:
        run = f"checkpoint_{kind}"
        steps = self.random_steps()
        for step in steps:
            self.launch(run, f"kill step={step}", restarts=0)
            found = (self.folder / run / "checkpoints").glob("*")
            if any(path.name.isdecimal() for path in found):
                getattr(fault_injection, kind)(
                    fault_injection.newest_checkpoint(self.folder / run), self.rng
                )
        code, _ = self.launch(run, restarts=0)
        damaged = self.events(run, "damaged")
        restarts = self.events(run, "start", "resume")[1:]
        lost = [step - 1 - event["step"] for step, event in zip(steps, restarts, strict=False)]
        seen = f"damaged: {damaged[-1]['problem']}; {damaged[-1]['now']}" if damaged else "nothing"
        return Row(
            f"{kind} in the newest checkpoint",
            len(damaged),
            seen,
            lost,
            self.same(run),
            _outcome(code),
        )

    # A random process is killed at a random time during a save.
    def while_saving(self) -> Row:
        run, lost, kills = "interrupted_save", [], 0
        process = subprocess.Popen(
            self.command(run),
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        shown: list[str] = []
        reader = threading.Thread(target=lambda: shown.extend(process.stdout or ()), daemon=True)
        reader.start()
        known: set[str] = set()
        while process.poll() is None and kills < self.repeats:
            writing = fault_injection.unfinished_save(self.folder / run)
            if writing is None or f"{kills} {writing.name}" in known:
                time.sleep(0.001)
                continue
            time.sleep(self.rng.random() * 0.2)
            found = fault_injection.worker_pids(process.pid)
            if writing.exists() and found:
                os.kill(found[self.rng.choice(sorted(found))], signal.SIGKILL)
                attempts = len(self.events(run, "start", "resume"))
                while (
                    len(self.events(run, "start", "resume")) == attempts and process.poll() is None
                ):
                    time.sleep(0.05)
                kills += 1
                lost.append(int(writing.stem) - self.events(run, "start", "resume")[-1]["step"])
        code = process.wait()
        reader.join()
        seen = next((line for line in shown if "was killed" in line), "nothing").strip()
        return Row(
            "kill -9 in the middle of a save", kills, seen, lost, self.same(run), _outcome(code)
        )

    def full(self) -> Row:
        code, shown = self.launch("full", f"full step={WINDOW + 2} process=0", restarts=0)
        seen = next(
            (line.strip() for line in shown.splitlines() if "disk is full" in line), "nothing"
        )
        again, _ = self.launch("full", restarts=0)
        resumed = self.events("full", "resume")[-1]["step"]
        return Row(
            "full disk",
            1,
            seen,
            [2 * WINDOW - SAVE_EVERY - resumed],
            self.same("full"),
            f"exit code {code}; after freeing space, {_outcome(again)}",
        )

    def nan(self) -> list[Row]:
        code, shown = self.launch("nan", f"nan step={WINDOW + 3}", restarts=3)
        seen = next((line.strip() for line in shown.splitlines() if "is not finite" in line), "")
        again, _ = self.launch("nan", restarts=0)
        resumed = self.events("nan", "resume")[-1]["step"]
        first = Row(
            "NaN loss",
            1,
            seen,
            [WINDOW + 2 - resumed],
            self.same("nan"),
            f"stopped, last good state saved (exit code {code}, not restarted); "
            f"after a manual restart, {_outcome(again)}",
        )
        code, shown = self.launch("skip", f"nan step={WINDOW + 3}", "--train.on_spike=skip")
        skipped = self.events("skip", "skipped")[0]
        seen = (
            f"rolled back to step {skipped['back_to']}, skipped batches {skipped['first_batch']} "
            f"to {skipped['last_batch']}"
        )
        return [
            first,
            Row(
                "NaN loss, train.on_spike=skip",
                1,
                seen,
                [WINDOW + 2 - skipped["back_to"]],
                None,
                _outcome(code),
            ),
        ]

    def delay(self) -> Row:
        code, _ = self.launch("delay", f"delay step={WINDOW} process=1 seconds=0.3")
        slow = self.events("delay", "slow_host")
        return Row(
            "a host delayed by 0.3 s a step",
            1,
            slow[-1]["message"] if slow else "nothing",
            [0],
            self.same("delay"),
            _outcome(code),
        )

    def corrupt_shard(self) -> Row:
        found, seen = 0, ""
        for trial in range(self.repeats):
            copy = self.folder / f"shards{trial}"
            shutil.copytree(self.folder / "words" / "train", copy)
            where = fault_injection.flip_bit(copy, self.rng)
            try:
                shards.open_shards(copy)
            except DataError as error:
                found += 1
                seen = f"{where}: {error.what}"
        return Row(
            "flip_bit in a token shard",
            self.repeats,
            seen,
            [],
            None,
            f"{found} of {self.repeats} refused before the first step",
        )


def _outcome(code: int) -> str:
    return "completed without intervention" if code == 0 else f"exit code {code}"


def table(rows: list[Row]) -> str:
    lines = [
        "| fault | times | message | max. steps lost | same losses after | outcome |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = {True: "bit by bit", False: "NO", None: "-"}[row.same]
        seen = row.seen.replace("|", "/").replace("\n", " ")[:200]
        lines.append(
            f"| {row.fault} | {row.times} | {seen} | {max(row.lost, default='-')} | {same} "
            f"| {row.survived} |"
        )
    return "\n".join(lines)


FAULTS: dict[str, Callable[[Bench], Row | list[Row]]] = {
    "kill": lambda bench: bench.in_attempts("kill", "was killed by SIGKILL"),
    "freeze": lambda bench: bench.in_attempts("freeze", "frozen"),
    "term": lambda bench: bench.in_attempts("term", "stopped by SIGTERM"),
    "save": Bench.while_saving,
    "flip": lambda bench: bench.in_checkpoints("flip_bit"),
    "truncate": lambda bench: bench.in_checkpoints("truncate"),
    "shard": Bench.corrupt_shard,
    "full": Bench.full,
    "nan": Bench.nan,
    "delay": Bench.delay,
    "corrupt": lambda bench: [bench.corrupt(1), bench.corrupt(bench.processes)],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10, help="injections per fault")
    parser.add_argument("--processes", type=int, default=2, help="number of processes of the run")
    parser.add_argument(
        "--heartbeat",
        type=int,
        default=30,
        help="seconds of silence after which a process counts as dead",
    )
    parser.add_argument(
        "--only", default="", help="faults to inject, comma-separated names; default: all"
    )
    parser.add_argument(
        "--output", default="benchmarks/results/faults", help="output prefix, before .md and so on"
    )
    options = parser.parse_args()
    if unknown := set(filter(None, options.only.split(","))) - set(FAULTS):
        parser.error(
            f"--only: unknown faults {', '.join(sorted(unknown))}; known: {', '.join(FAULTS)}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(
            pathlib.Path(temporary), options.repeats, options.processes, options.heartbeat
        )
        print(f"undisturbed: {len(bench.undisturbed)} steps", flush=True)
        rows: list[Row] = []
        for name, inject in FAULTS.items():
            if options.only and name not in options.only.split(","):
                continue
            started = time.perf_counter()
            found = inject(bench)
            rows += found if isinstance(found, list) else [found]
            print(f"{name}: {rows[-1]} ({time.perf_counter() - started:.0f} s)", flush=True)
            _write(options, rows)


def _write(options, rows: list[Row]) -> None:
    """Writes the results so far; called after every fault.

    Keeps the rows of earlier runs, except for faults that were measured again.
    """
    about, path = machine(), pathlib.Path(f"{options.output}.json")
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    names = {row.fault for row in rows}
    rows = [Row(**row) for row in earlier if row["fault"] not in names] + rows
    versions = ", ".join(f"{name} {value}" for name, value in about.items() if value)
    text = (
        "# Faults\n\n" + "\n".join((__doc__ or "").strip().splitlines()[4:]) + "\n\n"
        f"`python -m benchmarks.resilience.faults --repeats={options.repeats} "
        f"--processes={options.processes} --heartbeat={options.heartbeat}`; a checkpoint every "
        f"{SAVE_EVERY} steps, a fault about every {WINDOW}. {versions}.\n\n{table(rows)}\n"
    )
    pathlib.Path(f"{options.output}.md").write_text(text, encoding="utf-8")
    path.write_text(
        json.dumps({"machine": about, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
