"""Runs the corpus pipeline, a list of stages from sources to training documents. Report: 2.1.

Shuffles (shuffle.Shuffle), which compare documents across partitions, split the list into chains.
A Chain runs as one task per partition: it reads the rows, passes them through its stages batch by
batch, and writes the rows and counts of every stage (stage_files.py) and the keys of the next
shuffle. A partition with counts is finished, and a restarted run skips it.

OUTPUT/pipeline.json      the listings of the sources and the settings of every stage
OUTPUT/01-read/           kept/, rejected/ (with rule and value), and the counts of each partition
OUTPUT/02-language/ ...   and so on
OUTPUT/counts.json        the counts of each stage, summed
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import pathlib
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from tqdm import tqdm

from qwen_jax.config import renamed
from qwen_jax.corpus import engine, shuffle, stage_files
from qwen_jax.corpus.arrow import pa
from qwen_jax.corpus.dedup import components, minhash
from qwen_jax.corpus.partitions import Partition, check_outside, make_partitions
from qwen_jax.corpus.shuffle import Shuffle
from qwen_jax.corpus.sources.read import Read
from qwen_jax.corpus.stage import Stage
from qwen_jax.corpus.stage_files import PartitionWriter, StageFolder, read_batches
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.append_only import check_same, open_exclusive, record_provenance
from qwen_jax.utils.files import read_json, write_json

_NAMED = 3  # rows to name for each rule of the read stage
_FIXES = {
    "no_text_field": "; --read.text_field names the field of the text",
    "not_utf8": "; save as UTF-8, for example with iconv",
}


@dataclasses.dataclass(frozen=True)
class Chain:
    """The stages between two shuffles, for one partition.

    Attributes:
      root: the run's folder.
      first: the 1-based position of the first step in the pipeline.
      steps: the steps; the first is a Read, or a Shuffle whose duplicates have been found.
      index: key files of earlier runs, one per partition. These partitions precede this run's in
        that Shuffle.
      following: the Shuffle after the last step; None at the end of the pipeline.
    """

    root: str
    first: int
    steps: tuple[Read | Stage | Shuffle, ...]
    index: tuple[str, ...] = ()
    following: Shuffle | None = None

    def folders(self) -> list[StageFolder]:
        return [
            StageFolder(self.root, self.first + i, step.name) for i, step in enumerate(self.steps)
        ]

    def keys(self, number: int) -> pathlib.Path | None:
        return None if self.following is None else self._keys(self.following, number)

    def _keys(self, following: Shuffle, number: int) -> pathlib.Path:
        folder = StageFolder(self.root, self.first + len(self.steps), following.name).path
        return folder / "keys" / f"{number:05}.parquet"

    def finished(self, number: int) -> bool:
        keys = self.keys(number)
        return all(folder.finished(number) for folder in self.folders()) and (
            keys is None or keys.exists()
        )

    def __call__(self, task: tuple[int, Partition]) -> dict[str, list[float]]:
        """Processes a partition; returns {stage: [seconds, MB of input text]}.

        For the first step, the MB are those of its output.
        """
        number, partition = task
        writers = [
            PartitionWriter(folder, number, step.counted)
            for folder, step in zip(self.folders(), self.steps, strict=True)
        ]
        names = [folder.path.name for folder in self.folders()]
        seconds = {name: [0.0, 0.0] for name in names}
        shuffled = [0.0, 0.0]  # seconds and MB of the following shuffle
        keys, first = [], 0
        clock = _Clock()
        for table in self._input(number, partition):
            seconds[names[0]][0] += clock.lap()
            for i, (step, writer) in enumerate(zip(self.steps, writers, strict=True)):
                seconds[names[i]][1] += stage_files.text_bytes(table) / 1e6
                if i:
                    assert not isinstance(step, Read) and callable(step)
                    table = step(table)
                table = writer.add(table)
                seconds[names[i]][0] += clock.lap()
            if self.following is not None:
                keys.append(self.following.keys(table, first))
                shuffled[0] += clock.lap()
                shuffled[1] += stage_files.text_bytes(table) / 1e6
            first += len(table)
        for writer in writers:
            writer.close()
        if self.following is not None:
            shuffle.write_keys(self._keys(self.following, number), keys)
            seconds[f"{self.first + len(names):02}-{self.following.name}"] = shuffled
        return seconds

    def _input(self, number: int, partition: Partition) -> Iterator[pa.Table]:
        step = self.steps[0]
        if isinstance(step, Read):
            yield from step.batches(partition)
            return
        folder = self.folders()[0].path
        removed = shuffle.read_removed(folder / "removed", number + len(self.index))
        first = 0
        before = pathlib.Path(self.root).glob(f"{self.first - 1:02}-*")
        for table in read_batches(next(before) / "kept" / f"{number:05}.parquet"):
            part = shuffle.removed_from_batch(removed, first, len(table))
            names = [self._name(order) for order in part["kept"].to_pylist()]
            first += len(table)
            yield cast(Shuffle, step).remove(table, part, names)

    def _name(self, order: int) -> str:
        number, row = order >> 32, order & 0xFFFFFFFF
        if number < len(self.index):
            return f"{self.index[number]}#{row}"
        return f"{number - len(self.index):05}#{row}"


class _Clock:
    def __init__(self):
        self._then = time.perf_counter()

    def lap(self) -> float:
        then, self._then = self._then, time.perf_counter()
        return self._then - then


@dataclasses.dataclass(frozen=True)
class BucketTask:
    """Finds the duplicates in one range of hashes."""

    step: Shuffle
    files: tuple[str, ...]  # key files of all partitions, in order
    output: str

    def __call__(self, task: tuple[int, int, int]) -> float:
        """Processes one (bucket, begin, end) and returns the elapsed seconds."""
        number, begin, end = task
        started = time.perf_counter()
        keys = shuffle.read_bucket([pathlib.Path(file) for file in self.files], begin, end)
        shuffle.write_removed(
            pathlib.Path(self.output) / f"{number:05}.parquet", self.step.duplicates(keys)
        )
        return time.perf_counter() - started


@dataclasses.dataclass
class Result:
    """The output of a run.

    Attributes:
      folders: the folders of all stages, in order; the result is kept/*.parquet of the last one.
      partitions: the number of partitions.
      counts: the total counts: {"01-read": {"kept": ..., "rejected": ..., "counted": ...}, ...}.
      seconds: {stage: [seconds of work, MB of input]}, without the work of earlier attempts.
      sources: the source of each partition.
    """

    folders: list[StageFolder]
    partitions: int
    counts: dict[str, dict]
    seconds: dict[str, list[float]]
    sources: list[str]

    @property
    def folder(self) -> StageFolder:
        return self.folders[-1]


def run(
    sources: Sequence[str],
    steps: Sequence[Read | Stage | Shuffle],
    root: str,
    *,
    workers: int,
    partition_mb: float = 64.0,
    log: Callable[[str], None] = lambda line: None,
) -> Result:
    """Runs a pipeline, or resumes an unfinished one.

    Args:
      sources: the sources to read, in the syntax of partitions.py.
      steps: the stages; the first is a Read.
      root: the output folder, used only by this pipeline.
      workers: the number of processes; 0 runs in this process.
      partition_mb: megabytes of source files that one task reads.
      log: receives one line per stage.

    Raises:
      ConfigError: the folder belongs to a pipeline with different settings or is inside a source,
        or another process is using it.
      DataError: a source is missing, or partitions failed; the error names the first of them.
    """
    folder = pathlib.Path(root)
    check_outside(sources, folder)
    partitions, record = make_partitions(sources, partition_mb=partition_mb)
    for name, made in record.items():
        if made["passed_over"]:
            log(
                f"{name}: skipped "
                + ", ".join(f"{end} {count:,}" for end, count in made["passed_over"].items())
            )
    for line in steps[0].notes(partitions) if isinstance(steps[0], Read) else ():
        log(line)
    chains = list(_chains(steps, root))
    with open_exclusive(_record(folder).with_suffix(".lock"), folder):
        _open_folder(folder, record, steps, partition_mb)
        tasks = list(enumerate(partitions))
        seconds: dict[str, list[float]] = {}
        for chain in chains:
            if chain.first > 1:
                _find_duplicates(chain, len(tasks), seconds, workers)
            todo = [task for task in tasks if not chain.finished(task[0])]
            names = ", ".join(step.name for step in chain.steps)
            with tqdm(
                total=len(tasks),
                initial=len(tasks) - len(todo),
                desc=names,
                unit=" partitions",
                disable=not todo,
            ) as bar:
                for _, spent in engine.run_tasks(chain, todo, workers=workers):
                    _add(seconds, spent)
                    bar.update()
            for at in chain.folders():
                log(_line(at, counts := at.total(len(tasks))))
                for line in _named(at, counts, len(tasks)) if at.name == Read.name else ():
                    log(line)
        at = [each for chain in chains for each in chain.folders()]
        counts = {each.path.name: each.total(len(tasks)) for each in at}
        write_json(folder / "counts.json", counts)
    return Result(
        at, len(tasks), counts, seconds, [partition[0].source for partition in partitions]
    )


def _open_folder(folder: pathlib.Path, sources: dict, steps, partition_mb: float) -> None:
    if not isinstance(steps[0], Read):
        raise ConfigError(
            f"the first stage is {steps[0].name}, not read.",
            "pipeline.run(steps)",
            "pass a Read as the first stage.",
        )
    wanted = {f"source {name}": value for name, value in sources.items()}
    wanted |= {
        f"stage {number:02}-{step.name}": dataclasses.asdict(step)
        for number, step in enumerate(steps, 1)
    }
    wanted |= {"partition_mb": partition_mb, "versions": _versions()}
    former: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        former |= renamed(step, f"stage {number:02}-{step.name}.")
    record_provenance(_record(folder), wanted, folder, former)
    stage_files.remove_unfinished(folder)


def _record(folder: pathlib.Path) -> pathlib.Path:
    """Returns the file that records the sources and settings of a run's folder."""
    former = folder / "plan.json"  # its name in earlier versions
    return former if former.exists() else folder / "pipeline.json"


def _chains(steps, root: str) -> Iterator[Chain]:
    begins = [i for i, step in enumerate(steps) if hasattr(step, "duplicates") or i == 0]
    for begin, end in zip(begins, [*begins[1:], len(steps)], strict=True):
        own = steps[begin]
        yield Chain(
            root,
            begin + 1,
            tuple(steps[begin:end]),
            tuple(str(path) for path in index_files(own)) if begin else (),
            steps[end] if end < len(steps) else None,
        )


def _versions() -> dict[str, int | str | None]:
    """Returns the versions of everything that the output bytes depend on."""
    found = {"minhash": minhash.VERSION, "unicode": unicodedata.unidata_version}
    for name in ("daft", "pyarrow", "trafilatura", "resiliparse", "py3langid"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _keyed_by(versions: dict) -> dict:
    """Returns the versions that shuffle keys depend on."""
    return {name: versions.get(name) for name in ("minhash", "unicode")}


def index_files(step: Shuffle) -> list[pathlib.Path]:
    """Returns the files with the keys of earlier runs, from the folders in `step.index`.

    Raises:
      DataError: a folder has no keys, or its run is unfinished.
      ConfigError: the keys were made with different settings.
    """
    files = []
    for folder in map(pathlib.Path, step.index):
        found = sorted((folder / "keys").glob("*.parquet"))
        record = _record(folder.parent)
        made = read_json(record, finite=False) if record.exists() else {}
        if not found or f"stage {folder.name}" not in made:
            raise DataError(
                "this folder has no keys of an earlier run.",
                str(folder),
                f"pass the {step.name} folder of an earlier run.",
            )
        if not (folder / "removed").exists():  # created after all keys
            raise DataError(
                "the earlier run has not written all of its keys.",
                str(folder),
                "finish the earlier run first.",
            )
        wanted = json.loads(json.dumps(dataclasses.asdict(cast(Any, step)))) | {"index": []}
        check_same(
            _keyed_by(made["versions"]) | made[f"stage {folder.name}"] | {"index": []},
            _keyed_by(_versions()) | wanted,
            folder,
            record,
        )
        files += found
    return files


def _find_duplicates(chain: Chain, partitions: int, seconds: dict, workers: int) -> None:
    """Writes `removed/` for the shuffle at the start of a chain."""
    step, folder = cast(Shuffle, chain.steps[0]), chain.folders()[0].path
    files = (*chain.index, *(str(folder / "keys" / f"{i:05}.parquet") for i in range(partitions)))
    edges = shuffle.bucket_edges([pathlib.Path(file) for file in files])
    output = folder / ("alike" if step.linked else "removed")
    todo = [
        (i, begin, end)
        for i, (begin, end) in enumerate(itertools.pairwise(edges))
        if not (output / f"{i:05}.parquet").exists()
    ]
    for _, spent in engine.run_tasks(BucketTask(step, files, str(output)), todo, workers=workers):
        _add(seconds, {folder.name: [spent, 0.0]})
    if step.linked and not (folder / "removed" / "00000.parquet").exists():
        started = time.perf_counter()
        removed = components.removed(
            [output / f"{i:05}.parquet" for i in range(len(edges) - 1)], len(chain.index) << 32
        )
        shuffle.write_removed(folder / "removed" / "00000.parquet", removed)
        _add(seconds, {folder.name: [time.perf_counter() - started, 0.0]})


def _add(seconds: dict[str, list[float]], more: dict[str, list[float]]) -> None:
    for name, (spent, size) in more.items():
        old = seconds.setdefault(name, [0.0, 0.0])
        seconds[name] = [old[0] + spent, old[1] + size]


def _line(at: StageFolder, counts: dict) -> str:
    kept = counts["kept"]
    rejected = sorted(counts.get("rejected", {}).items(), key=lambda item: -item[1]["documents"])
    listed = ", ".join(f"{rule} {count['documents']:,}" for rule, count in rejected[:6])
    listed += f" and {len(rejected) - 6} more rules" if rejected[6:] else ""
    return (
        f"{at.path.name}: {kept['documents']:,} documents, {kept['text_bytes'] / 1e6:,.1f} MB"
        + (f"; rejected: {listed}" if listed else "")
    )


def _named(at: StageFolder, counts: dict, partitions: int) -> list[str]:
    """Returns a line for each rule of a stage, with the first rows that it rejected."""
    rejected = {rule: count["documents"] for rule, count in counts.get("rejected", {}).items()}
    found: dict[str, list[str]] = {rule: [] for rule in rejected}
    for number in range(partitions):
        if all(len(found[rule]) >= min(_NAMED, count) for rule, count in rejected.items()):
            break
        for batch in read_batches(at.rejected(number), ["path", "rejected_by", "rejected_value"]):
            for path, rule, value in zip(*(column.to_pylist() for column in batch), strict=True):
                if len(found[rule]) < _NAMED:
                    found[rule].append(f"{path} ({value[:60]})" if value else path)
    return [
        f"  {rule}: {', '.join(found[rule])}"
        + (f" and {count - _NAMED:,} more" if count > _NAMED else "")
        + _FIXES.get(rule, "")
        for rule, count in rejected.items()
    ]


def throughput(seconds: dict[str, list[float]]) -> list[str]:
    """Returns a line per stage with its MB of text per second and worker, and the slowest stage."""
    rates = {name: size / spent for name, (spent, size) in seconds.items() if spent and size}
    lines = [
        f"{name:>20}: {rate:8.1f} MB/s per worker, {seconds[name][0]:.1f} s"
        for name, rate in rates.items()
    ]
    if rates:
        lines.append(f"the slowest stage is {min(rates, key=lambda name: rates[name])}")
    return lines
