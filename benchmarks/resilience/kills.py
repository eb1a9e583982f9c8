"""Kills runs of every stage, and breaks their disks; writes benchmarks/results/kills.md.

    python -m benchmarks.resilience.kills [--stages=pretrain,generate] [--faults=kill,full]

Each case starts a tiny run by its command, disturbs it at a random point, repairs what was broken,
and runs the same command again. A run must go on or stop with a documented exit code
(qwen_jax/exit_codes.py) and an error without a traceback, keep every finished checkpoint or line,
and end with the same bits as a run that nothing disturbed. Linux only, as root: it mounts small
file systems (disks.py) and changes the user.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.common.timing import machine
from benchmarks.resilience import failing_files
from benchmarks.resilience.disks import Folder, FullDisk, ReadOnlyDisk
from benchmarks.resilience.kill_stages import STAGES, Stage, write_inputs
from qwen_jax import exit_codes
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import unknown_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SECONDS = 600  # after which a run counts as hanging
NOBODY = 65534
FAULTS = {
    "kill": "SIGKILL at a random point of the run, its start included",
    "save": "SIGKILL while it writes a checkpoint or another file",
    "term": "SIGTERM at a random point",
    "full": "the disk (tmpfs) is filled to the last byte, and stays full",
    "readonly": "the disk (ext4) becomes read-only",
    "EIO": "from a random change of a file on, Python's file operations in the folder fail",
    "EACCES": "the same, only those that write",
    "user": "an unprivileged user loses the permission to write in the folder",
    "power": "the disk becomes read-only and loses what was not synced",
    "ENOSPC": "the same, only those that need space",
}
USER_STAGE = "pretrain"  # once is enough
HEAD = (
    "| stage | fault | point | exit code | error | resumed at | same bits | wrong |\n"
    "|---|---|---|---|---|---|---|---|"
)
_SIGNALS = {"kill": signal.SIGKILL, "save": signal.SIGKILL, "term": signal.SIGTERM}
_INJECTED = ("EIO", "ENOSPC", "EACCES")
_CODES = {  # how a disturbed run may end; 0: it went on, or SIGTERM stopped it after a save
    "kill": (-signal.SIGKILL,),
    "save": (-signal.SIGKILL,),
    "term": (exit_codes.DONE, -signal.SIGTERM),
    "full": (exit_codes.DONE, exit_codes.DISK_FULL),
    "readonly": (exit_codes.DONE, exit_codes.REFUSED, exit_codes.UNREADABLE),
    "power": (exit_codes.DONE, exit_codes.REFUSED, exit_codes.UNREADABLE),
    "EIO": (exit_codes.DONE, exit_codes.UNREADABLE),
    "ENOSPC": (exit_codes.DONE, exit_codes.DISK_FULL),
    "EACCES": (exit_codes.DONE, exit_codes.REFUSED),
    "user": (exit_codes.DONE, exit_codes.REFUSED),
}
_TRIES = 3  # of a case whose run ends before it is disturbed


@dataclasses.dataclass(frozen=True)
class Config:
    """What is disturbed, and how."""

    seed: int = option(0, "random seed of all points")
    stages: str = option(",".join(STAGES), "stages, separated by commas")
    faults: str = option(",".join(FAULTS), "faults, separated by commas")
    jobs: int = option(2, "number of runs at once")
    output: str = option(str(RESULTS / "kills"), "path of the results without its ending")


@dataclasses.dataclass
class Row:
    """One case."""

    stage: str
    fault: str
    point: str  # when
    code: int  # exit code of the disturbed run
    said: str  # its error
    done: int | None  # what it had finished
    resumed: int | None = None  # from where the second run went on
    same: bool = False  # whether the second run ended with the bits of the reference
    wrong: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Runs:
    """Starts the runs of one stage, whose output goes to a file."""

    stage: Stage
    inputs: pathlib.Path
    log: pathlib.Path
    nobody: bool = False  # whether an unprivileged user starts them

    def start(self, run: pathlib.Path, *, failing: str = "") -> subprocess.Popen:
        wrapper = ["benchmarks.resilience.failing_files"] if failing else []
        command = [sys.executable, "-m", *wrapper, f"experiments.{self.stage.name}"]
        command += [flag.format(inputs=self.inputs, run=run) for flag in self.stage.flags]
        if self.nobody:
            user = f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"
            command = ["setpriv", *user, *command]
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "kills"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            failing_files.VARIABLE: failing,
        }
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log
            )

    def end(self, process: subprocess.Popen, disk: Folder | None = None) -> int:
        """Waits for a run, on a disk that stays broken; returns its exit code."""
        deadline = time.monotonic() + SECONDS
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise SystemExit(f"{self.stage.name} hangs: {self.output()[-2000:]}")
            if disk is not None and disk.failed:
                disk.fail()
            time.sleep(0.05)
        return process.returncode

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def error(self) -> str:
        """Returns the sentence of the error that a run ended with, or its last line."""
        output = self.output()
        what = re.findall(r"^  what:  (.*)", output, re.MULTILINE)
        lines = [line for line in output.splitlines() if line.strip()]
        return what[-1] if what else lines[-1] if lines else ""


class Undisturbed:
    """The reference run of a stage: its result, and how far and how fast it came."""

    def __init__(self, stage: Stage, folder: pathlib.Path, inputs: pathlib.Path):
        folder.mkdir()
        self.stage, self.folder, self.inputs = stage, folder, inputs
        run, counted = folder / "undisturbed", folder / "changes"
        run.mkdir()
        runs = self.runs("undisturbed.log")
        process = runs.start(run, failing=f"COUNT {counted} {run}")
        self.start = math.inf  # seconds until the first progress
        began = time.monotonic()
        while process.poll() is None:
            if self.start == math.inf and stage.progress(run):
                self.start = time.monotonic() - began
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"{stage.name}, undisturbed: {runs.output()[-2000:]}")
        self.start = min(self.start, time.monotonic() - began)
        self.changes = int(counted.read_text())  # operations that change the folder
        self.progress, self.result = stage.progress(run), stage.result(run)

    def runs(self, log: str, *, nobody: bool = False) -> Runs:
        return Runs(self.stage, self.inputs, self.folder / log, nobody)


class Case:
    """One fault in one run, and the run that follows."""

    def __init__(self, undisturbed: Undisturbed, fault: str, seed: int):
        self._of, self._stage, self._fault = undisturbed, undisturbed.stage, fault
        self._rng = random.Random(f"{self._stage.name} {fault} {seed}")
        self._runs = self._of.runs(f"{fault}.log", nobody=fault == "user")

    def row(self) -> Row:
        """Runs the case; again if the run ended before it was disturbed."""
        for number in range(_TRIES):
            row = self._row(self._of.folder / f"{self._fault}-{number}")
            if "too late" not in row.point:
                break
        return row

    def _row(self, folder: pathlib.Path) -> Row:
        self._runs.log = self._runs.log.with_suffix(".log")
        with self._disk(folder) as disk:
            run = disk.folder / "run"
            run.mkdir()
            if self._fault == "user":
                os.chown(run, NOBODY, NOBODY)
            failing, point = "", ""
            if self._fault in _INJECTED:
                change = self._rng.randrange(1, self._of.changes + 1)
                failing = f"{self._fault} {change} {run}"
                point = f"change {change} of {self._of.changes}"
            process = self._runs.start(run, failing=failing)
            point = point or self._disturb(process, run, disk)
            code = self._runs.end(process, disk)
            said = self._runs.error() if code > 0 else self._warning()
            traceback = "Traceback (most recent" in self._runs.output()
            if self._fault == "user":
                _give(run, NOBODY)
            disk.repair()
            row = Row(self._stage.name, self._fault, point, code, said, self._stage.done(run))
            row.wrong += ["exit code"] * (code not in _CODES[self._fault])
            row.wrong += ["traceback"] * traceback
            if row.wrong:
                print(self._runs.output()[-5000:], flush=True)
            self._resume(run, row)
            shutil.rmtree(run)
        return row

    def _disk(self, folder: pathlib.Path) -> Folder:
        if self._fault == "full":
            return FullDisk(folder)
        if self._fault in ("readonly", "power"):
            return ReadOnlyDisk(folder, synced=self._fault == "readonly")
        return Folder(folder)

    def _disturb(self, process: subprocess.Popen, run: pathlib.Path, disk: Folder) -> str:
        """Waits for a random point and injects the fault there; returns the point."""
        rng, total = self._rng, self._of.progress
        if total < 3 or self._fault == "kill" and rng.random() < 0.3:
            wait = rng.random() * self._of.start
            self._until(process, lambda: False, wait)
            point = f"{wait:.1f} s after the start"
        else:
            wanted = rng.randrange(1, total)
            self._until(process, lambda: self._stage.progress(run) >= wanted)
            point = f"at {wanted} of {total}"
        if self._fault == "save":
            self._until(process, lambda: any(run.glob(self._stage.unfinished)))
            point += ", in a write"
        time.sleep(rng.random() * 0.05)
        if process.poll() is not None:
            return point + ", too late"
        if self._fault in _SIGNALS:
            process.send_signal(_SIGNALS[self._fault])
        elif self._fault == "user":
            _give(run, 0)
        else:
            disk.fail()
        return point

    def _until(
        self, process: subprocess.Popen, reached: Callable[[], bool], seconds: float = SECONDS
    ) -> None:
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # a folder that is renamed while it is listed
                if reached():
                    return
            time.sleep(0.03)

    def _warning(self) -> str:
        lines = self._runs.output().splitlines()
        return next((line for line in lines if line.startswith("warning: cannot write")), "")

    def _resume(self, run: pathlib.Path, row: Row) -> None:
        """Starts the run again, and compares."""
        self._runs.log = self._runs.log.with_suffix(".again")
        code = self._runs.end(self._runs.start(run))
        if code:
            row.wrong.append(f"it does not resume, {code}: {self._runs.error()}")
            return
        row.resumed = self._stage.resumed(run, self._runs.output())
        if row.done != row.resumed:
            row.wrong.append(f"{row.done} were finished, {row.resumed} were kept")
        expected, found = self._of.result, self._stage.result(run)
        differ = [name for name in expected | found if expected.get(name) != found.get(name)]
        row.same = not differ
        if differ:
            row.wrong.append(f"{len(differ)} differ: {', '.join(differ[:3])}")


def _give(folder: pathlib.Path, user: int) -> None:
    """Gives the folders of a run to a user; others may only read."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, user, user)


def cells(row: Row) -> str:
    """Returns a line of the table."""
    said = re.sub(r"/tmp/\S*/run/?", "", row.said).replace("|", "/")
    said = said if len(said) <= 160 else f"{said[:160]}..."
    code = f"{signal.Signals(-row.code).name}" if row.code < 0 else str(row.code)
    resumed = "-" if row.resumed is None else str(row.resumed)
    same = "yes" if row.same else "NO"
    wrong = "; ".join(row.wrong)
    shown = row.stage, row.fault, row.point, code, said, resumed, same, wrong
    return f"| {' | '.join(shown)} |"


def save(config: Config, rows: list[Row]) -> None:
    """Writes the table, so far."""
    about = ", ".join(f"{name} {value}" for name, value in machine().items() if value != "")
    order = {name: number for number, name in enumerate([*STAGES, *FAULTS])}
    rows = sorted(rows, key=lambda row: (order[row.stage], order[row.fault]))
    lines = [
        "# Kills and broken disks in every stage",
        "",
        f"`python -m benchmarks.resilience.kills --seed={config.seed}`; {about}.",
        f"{len(rows)} cases, {sum(not row.wrong for row in rows)} as they must be.",
        "",
        (__doc__ or "").split("\n\n")[2],
        "",
        *(f"- {name}: {FAULTS[name]}" for name in FAULTS if any(row.fault == name for row in rows)),
        "",
        HEAD,
        *map(cells, rows),
    ]
    pathlib.Path(f"{config.output}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(config: Config) -> None:
    """Runs all cases and writes the table after each."""
    names, faults = config.stages.split(","), config.faults.split(",")
    for name, known in [(name, STAGES) for name in names] + [(name, FAULTS) for name in faults]:
        if name not in known:
            raise unknown_name("stage or fault", name, known, "--stages, --faults")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        folder.chmod(0o755)  # for the unprivileged user
        write_inputs(folder / "inputs")
        with concurrent.futures.ThreadPoolExecutor(config.jobs) as pool:
            starting = {
                name: pool.submit(Undisturbed, STAGES[name], folder / name, folder / "inputs")
                for name in names
            }
            cases = [
                pool.submit(
                    lambda f=fault, n=name: Case(starting[n].result(), f, config.seed).row()
                )
                for fault in faults
                for name in names
                if fault != "user" or name == USER_STAGE
            ]
            for case in concurrent.futures.as_completed(cases):
                rows.append(case.result())
                print(cells(rows[-1]), flush=True)
                save(config, rows)


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
