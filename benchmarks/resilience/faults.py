"""Every fault, with what is seen of it and what it costs: benchmarks/results/faults.md.

    python -m benchmarks.resilience.faults --repeats=10

A small pretraining of two processes (launch.local) is hurt again and again, and its losses compared
with those of a run that nothing happened to, bit by bit: a batch that came twice, never, or in
another order would show. Lost are the steps between the newest checkpoint and the fault. A
checkpoint is written beside training, and one that is not whole yet does not count: so a kill right
behind a save can cost that save's steps as well. After a damaged checkpoint it is the distance of
two.
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

import numpy as np

from benchmarks.common.timing import machine
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.errors import DataError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.resilience import fault_injection
from qwen_jax.utils.jsonl import read_rows

SAVE_EVERY = 4
WINDOW = 8  # steps between two faults


@dataclasses.dataclass
class Row:
    """One line of the table."""

    fault: str
    times: int
    seen: str  # what a person reads
    lost: list[int]  # steps, each time
    same: bool | None  # losses as those of the undisturbed run; None: no run
    survived: str


class Bench:
    """Runs of one model on one text."""

    def __init__(self, folder: pathlib.Path, repeats: int, processes: int, heartbeat: int):
        self.folder, self.repeats, self.processes = folder, repeats, processes
        self.heartbeat = heartbeat
        self.steps = WINDOW * (repeats + 1)
        self.draw = random.Random(0)
        words = np.random.default_rng(0)
        text = [
            Document(str(i), " ".join(words.choice(["a", "bc", "def", "gh"], 50)))
            for i in range(200)
        ]
        shards.write(text, folder / "words", Tokenizer({bytes([b]): b for b in range(256)}))
        self.launch("whole")
        self.whole = self.losses("whole")

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

    def environment(self, plan: str = "") -> dict[str, str]:
        return os.environ | {
            fault_injection.VARIABLE: plan,
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def launch(self, run: str, plan: str = "", *flags: str, **settings):
        """Runs to the end; (exit code, what was shown)."""
        done = subprocess.run(
            self.command(run, *flags, **settings),
            text=True,
            env=self.environment(plan),
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
        return self.losses(run) == self.whole

    def moments(self) -> list[int]:
        """A random step in each window, behind the first checkpoint."""
        return [
            WINDOW * (life + 1) + self.draw.randrange(-WINDOW // 2 + 1, WINDOW // 2)
            for life in range(self.repeats)
        ]

    # One fault in each life, in a random process, at a random step; the launcher does the rest.
    def in_lives(self, kind: str, words: str) -> Row:
        return self._in_lives(
            kind, words, kind, lambda: f" process={self.draw.randrange(self.processes)}"
        )

    # The same in the weights, which are of all processes; every step is computed twice.
    def corrupt(self, processes: int) -> Row:
        name = (
            f"a wrong bit in one computation, train.sdc_check_every=1, {processes} process"
            + "es" * (processes > 1)
        )
        return self._in_lives(
            "corrupt",
            "two computations",
            name,
            str,
            "--train.sdc_check_every=1",
            processes=processes,
        )

    def _in_lives(self, kind: str, words: str, name: str, where, *flags, **settings) -> Row:
        steps = self.moments()
        # A signal is heard within a second or two: a fast machine's steps wait for it.
        slower = "; delay step={0} attempt={1} seconds=0.5" if kind == "term" else ""
        plan = "; ".join(
            f"{kind} step={step} attempt={life}{where()}" + slower.format(step, life)
            for life, step in enumerate(steps)
        )
        run = name.replace(" ", "_")
        code, shown = self.launch(run, plan, *flags, **settings)
        begun = self.events(run, "start", "resume")[1:]
        # After a signal some steps more are done before all save: nothing is lost then.
        lost = [max(step - 1 - event["step"], 0) for step, event in zip(steps, begun, strict=False)]
        seen = next((line for line in shown.splitlines() if words in line), "nothing")
        return Row(name, len(begun), seen.strip(), lost, self.same(run), _ended(code))

    # The newest checkpoint is damaged after each life, which ends by a kill.
    def in_checkpoints(self, kind: str) -> Row:
        run = f"checkpoint_{kind}"
        steps = self.moments()
        for step in steps:
            self.launch(run, f"kill step={step}", restarts=0)
            found = (self.folder / run / "checkpoints").glob("*")
            if any(path.name.isdecimal() for path in found):
                getattr(fault_injection, kind)(
                    fault_injection.newest_checkpoint(self.folder / run), self.draw
                )
        code, _ = self.launch(run, restarts=0)
        damaged = self.events(run, "damaged")
        begun = self.events(run, "start", "resume")[1:]
        lost = [step - 1 - event["step"] for step, event in zip(steps, begun, strict=False)]
        seen = f"damaged: {damaged[-1]['problem']}; {damaged[-1]['now']}" if damaged else "nothing"
        return Row(
            f"{kind} in the newest checkpoint",
            len(damaged),
            seen,
            lost,
            self.same(run),
            _ended(code),
        )

    # Process 0 or another is killed at a random moment of a save.
    def while_saving(self) -> Row:
        run, lost, kills = "cut_save", [], 0
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
            time.sleep(self.draw.random() * 0.2)
            found = fault_injection.worker_pids(process.pid)
            if writing.exists() and found:
                os.kill(found[self.draw.choice(sorted(found))], signal.SIGKILL)
                lives = len(self.events(run, "start", "resume"))
                while len(self.events(run, "start", "resume")) == lives and process.poll() is None:
                    time.sleep(0.05)
                kills += 1
                lost.append(int(writing.stem) - self.events(run, "start", "resume")[-1]["step"])
        code = process.wait()
        reader.join()
        seen = next((line for line in shown if "was killed" in line), "nothing").strip()
        return Row(
            "kill -9 in the middle of a save", kills, seen, lost, self.same(run), _ended(code)
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
            f"ended with exit code {code}; with room again, {_ended(again)}",
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
            f"stopped, last good state saved (exit code {code}, not tried again); "
            f"by hand, {_ended(again)}",
        )
        code, shown = self.launch("skip", f"nan step={WINDOW + 3}", "--train.on_spike=skip")
        skipped = self.events("skip", "skipped")[0]
        seen = (
            f"back to step {skipped['back_to']}, batches {skipped['first_batch']} to "
            f"{skipped['last_batch']} left out"
        )
        return [
            first,
            Row(
                "NaN loss, train.on_spike=skip",
                1,
                seen,
                [WINDOW + 2 - skipped["back_to"]],
                None,
                _ended(code),
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
            _ended(code),
        )

    def corrupt_shard(self) -> Row:
        found, seen = 0, ""
        for trial in range(self.repeats):
            copy = self.folder / f"shards{trial}"
            shutil.copytree(self.folder / "words" / "train", copy)
            where = fault_injection.flip_bit(copy, self.draw)
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


def _ended(code: int) -> str:
    return "to the end without a hand" if code == 0 else f"exit code {code}"


def table(rows: list[Row]) -> str:
    lines = [
        "| fault | times | what was seen | steps lost, most | same losses after | outcome |",
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--heartbeat", type=int, default=30)
    parser.add_argument("--only", default="", help="names of faults, with commas between")
    parser.add_argument("--output", default="benchmarks/results/faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(
            pathlib.Path(temporary), options.repeats, options.processes, options.heartbeat
        )
        print(f"undisturbed: {len(bench.whole)} steps", flush=True)
        tasks = {
            "kill": lambda: bench.in_lives("kill", "was killed by SIGKILL"),
            "freeze": lambda: bench.in_lives("freeze", "frozen"),
            "term": lambda: bench.in_lives("term", "stopped by SIGTERM"),
            "save": bench.while_saving,
            "flip": lambda: bench.in_checkpoints("flip_bit"),
            "truncate": lambda: bench.in_checkpoints("truncate"),
            "shard": bench.corrupt_shard,
            "full": bench.full,
            "nan": bench.nan,
            "delay": bench.delay,
            "corrupt": lambda: [bench.corrupt(1), bench.corrupt(bench.processes)],
        }
        rows: list[Row] = []
        for name, task in tasks.items():
            if options.only and name not in options.only.split(","):
                continue
            started = time.perf_counter()
            found = task()
            rows += found if isinstance(found, list) else [found]
            print(f"{name}: {rows[-1]} ({time.perf_counter() - started:.0f} s)", flush=True)
            _write(options, rows)


def _write(options, rows: list[Row]) -> None:
    """After every fault: what is there is not lost when a later one takes too long. Rows of an
    earlier call stay, unless the same fault was measured again."""
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
