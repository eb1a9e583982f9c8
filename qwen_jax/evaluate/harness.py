"""Runs tasks on a model: reads questions, scores them, and writes samples and results.

    OUTPUT/results.json          scores, counts, protocols, hashes of data and prompts, versions
    OUTPUT/times.json            seconds of each task; the only file that differs between equal runs
    OUTPUT/samples/TASK.jsonl    every prompt with its answer, extraction and verdict
    OUTPUT/index.html            all of these to look at; it loads samples from OUTPUT/page

A run that was killed goes on where it was, and writes the same bytes.
"""

import contextlib
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import generation, likelihood, provenance
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.page import chunks, page
from qwen_jax.evaluate.prompts.questions import Work, hash_of
from qwen_jax.evaluate.samples import sealed
from qwen_jax.evaluate.samples.file import SamplesFile
from qwen_jax.evaluate.summary import (
    Decontamination,
    TrainingText,
    ceiling,
    floors,
    mean_of,
    summarize,
    warn,
)
from qwen_jax.evaluate.task import Example, Task
from qwen_jax.evaluate.tasks import MEANS, TASKS
from qwen_jax.evaluate.tasks.code import toolchains
from qwen_jax.grading.symbolic import second_opinion
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.scoring import Scorer
from qwen_jax.kernels.platform import target_of
from qwen_jax.parallel import distributed
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params
from qwen_jax.utils.append_only import PATHS, open_exclusive
from qwen_jax.utils.files import WRITING, write_json

_CPU_SLOTS = 16  # completions that a CPU samples at once


class Model(NamedTuple):
    """A model to evaluate, on its devices."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    mesh: Mesh | None = None


class Source(Protocol):
    """What answers the questions: a model on this machine, or one behind a server.

    Attributes:
      unsafe: whether programs run even where the kernel isolates neither files nor network.
    """

    unsafe: bool

    def encode(self, work: Work, examples: Sequence[Example]) -> Sequence[Any]:
        """Returns each example as `samples` takes it.

        Raises:
          DataError: an example does not fit the model.
        """
        ...

    def samples(self, work: Work, items: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Yields the sample of each item of `encode`, in any order."""
        ...


class LoadedModel:
    """A model with what scores and what generates, each compiled when it is first used.

    Args:
      model: an engine is used as it is, with its tokenizer and settings.
      batch_size: rows that a device scores, and completions that it samples, at once; on a CPU they
        are 1 and 16.
      max_length: maximum tokens of a prompt and its completion; None: the model's context length.
      unsafe: as in Source.
      grades: whether completions are graded; samples are empty otherwise. All processes of a run
        generate, but only one of them needs the verdicts.

    Raises:
      ConfigError: an engine has no tokenizer, runs requests, or has another max_length.
    """

    def __init__(
        self,
        model: Model | Engine,
        *,
        batch_size: int,
        max_length: int | None,
        unsafe: bool = False,
        grades: bool = True,
    ):
        length = model.config.context_length
        if isinstance(model, Engine):
            _check_engine(model, max_length)
            length = model.max_model_len
        assert model.tokenizer is not None
        self.tokenizer: Tokenizer = model.tokenizer
        self.max_length = max_length or length
        self._model, self._batch_size = model, batch_size
        self.unsafe, self._grades = unsafe, grades

    @functools.cached_property
    def scorer(self) -> Scorer:
        if isinstance(self._model, Engine):
            return self._model.scorer(self._batch_size)
        return Scorer(
            self._model.params,
            self._model.config,
            batch_size=self._batch_size,
            max_length=self.max_length,
            mesh=self._model.mesh,
        )

    @functools.cached_property
    def engine(self) -> Engine:
        if isinstance(self._model, Engine):
            return self._model
        mesh = self._model.mesh
        shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        # How a CPU rounds depends on the number of slots.
        on_cpu = target_of(self._model.params.embed).platform == "cpu"
        slots = _CPU_SLOTS if on_cpu else self._batch_size
        return Engine(
            self._model.params,
            self._model.config,
            tokenizer=self.tokenizer,
            max_num_seqs=slots * shards,
            max_model_len=self.max_length,
            mesh=mesh,
        )

    def encode(self, work: Work, examples: Sequence[Example]) -> list[Any]:
        """Returns examples as likelihood.Question or generation.Prompt.

        Raises:
          DataError: an example does not fit the model.
        """
        shown = tqdm(
            examples,
            desc=f"{work.task.key}: prompts",
            unit="",
            leave=False,
            disable=jax.process_index() > 0,
        )
        return [work.encode(example, self.tokenizer, self.max_length) for example in shown]

    def samples(self, work: Work, items: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Yields the sample of each item, as it is completed."""
        by_token = work.task.choices is not None
        total = sum(len(row.tokens) for item in items for row in item.rows) if by_token else None
        with tqdm(
            total=len(items) if total is None else total,
            desc=work.task.key,
            unit=" tokens" if by_token else " completions",
            unit_scale=by_token,
            disable=jax.process_index() > 0,
        ) as bar:
            for _, sample in self.score(work.task, items, bar.update):
                yield sample

    def score(
        self, task: Task, items: Sequence[Any], progress: Callable[[int], object]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (index of an item, its sample), as items are completed.

        Args:
          items: what Work.encode returns.
          progress: receives tokens of choices that are done, or 1 for each completion.
        """
        if task.choices is not None:
            return likelihood.score(self.scorer, items, task, progress=progress)
        return generation.generate(
            self.engine, items, task, progress=progress, unsafe=self.unsafe, grades=self._grades
        )


def _check_engine(engine: Engine, max_length: int | None) -> None:
    """Raises ConfigError if an engine cannot be evaluated."""
    problem = (
        "has no tokenizer"
        if engine.tokenizer is None
        else "is running requests"
        if engine.busy
        else f"has max_model_len={engine.max_model_len}, and max_length is {max_length}"
        if max_length not in (None, engine.max_model_len)
        else None
    )
    if problem is not None:
        raise ConfigError(
            f"the engine {problem}.",
            "run(checkpoint)",
            "pass an idle engine with a tokenizer, and leave max_length out.",
        )


def run(
    source: Source,
    work: Sequence[Work],
    data: DataFolders,
    output: str | os.PathLike,
    *,
    identity: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    decontamination: Decontamination | None = None,
    training_text: TrainingText | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Scores all tasks, writes OUTPUT, and returns the content of results.json.

    Args:
      source: the model.
      identity: what determines the results; a resumed evaluation must have the same.
      about: what else results.json says, and a resumed evaluation may change.
      decontamination: the index of test sets that the training text was filtered with.
      training_text: training text that was searched for the examples.

    Raises:
      ConfigError: OUTPUT belongs to another evaluation, or another process writes to it.
      DataError: an example does not fit the model, or a sample of OUTPUT is damaged or was changed.
    """
    folder = pathlib.Path(output)
    first = jax.process_index() == 0
    records: dict[str, Any] = {}
    times: dict[str, float] = {}
    with contextlib.ExitStack() as opened:
        new = first and provenance.claim(folder, identity)
        if first:
            opened.enter_context(open_exclusive(folder / ".lock", folder))
            _remove_leftovers(folder)
            provenance.results(folder)  # damage is named before anything is computed
            provenance.read(folder / "times.json")
        lacking = _lacking(work, log)
        work = [one for one in work if one.task.key not in lacking]
        outputs = [
            opened.enter_context(SamplesFile(one, folder, identity)) if first else None
            for one in work
        ]
        opened.push(functools.partial(_release, folder if new else None, outputs))
        left = [_left(one, samples) for one, samples in zip(work, outputs, strict=True)]
        # All prompts are encoded before the first one is computed.
        items = [source.encode(*pair) if pair[1] else () for pair in zip(work, left, strict=True)]
        for one, own, samples in zip(work, items, outputs, strict=True):
            begin = time.monotonic()
            _before_grading(one, samples, log)
            for sample in source.samples(one, own) if own else ():
                if samples is not None:
                    samples.add(sample)
            if samples is None:
                continue
            rows = samples.finish()
            record = _record(one, rows, source, decontamination, training_text)
            records[one.task.key] = record
            times[one.task.key] = round(time.monotonic() - begin, 3)
            one.log_dropped(log)
            warn(one.task, record, log)
            chunks.write(folder / "page", one.task.key, rows)
        results: dict[str, Any] = {
            **{name: value for name, value in identity.items() if name != PATHS},
            **(about or {}),
            "versions": provenance.versions(),
            "data": dict(sorted(data.hashes.items())),
            "tasks": records,
            "not_run": lacking,
        }
        if first:
            _write(folder, results, times, work)
    return json.loads(distributed.broadcast(json.dumps(results)))


def _release(new: pathlib.Path | None, outputs: Sequence[SamplesFile | None], *error: Any) -> None:
    """Lets a new folder have any settings next time, after an error before the first sample."""
    files = [one for one in outputs if one is not None]
    if new is not None and error[0] is not None and all(one.is_empty for one in files):
        for one in files:
            one.remove()
        for name in ("run.json", ".lock"):
            (new / name).unlink(missing_ok=True)


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Deletes temporary files of ours that a killed process left; the folder may have others."""
    own = [
        f"{name}.*{WRITING}" for name in ("run.json", "results.json", "times.json", "index.html")
    ]
    patterns = [*own, f"samples/*{WRITING}", f"page/**/*{WRITING}"]
    for leftover in (path for pattern in patterns for path in folder.glob(pattern)):
        leftover.unlink()


def _write(
    folder: pathlib.Path, results: dict[str, Any], times: dict[str, float], work: Sequence[Work]
) -> None:
    """Writes the files of results, with those of earlier commands."""
    task_of = TASKS | {one.task.key: one.task for one in work}
    _add_earlier(results, times, folder, task_of)
    results["means"] = _means(folder, results["tasks"])
    write_json(folder / "results.json", results)
    write_json(folder / "times.json", times)
    page.write(folder, results, task_of)


def _add_earlier(
    results: dict[str, Any],
    times: dict[str, float],
    folder: pathlib.Path,
    task_of: Mapping[str, Task],
) -> None:
    """Adds what earlier commands wrote to the folder for other tasks, which come first."""
    found = provenance.earlier(folder, task_of)
    results["tasks"] = found | results["tasks"]
    if found:
        before = provenance.results(folder)
        results["data"] = dict(sorted((before["data"] | results["data"]).items()))
        seconds = provenance.read(folder / "times.json")
        times |= {key: seconds[key] for key in found.keys() - times.keys() if key in seconds}


def _means(folder: pathlib.Path, keys: Iterable[str]) -> dict[str, Any]:
    """Returns name -> record of each mean of several tasks that have samples in the folder."""
    parts = {key for mean in MEANS.values() for key in mean.tasks} & set(keys)
    samples = {key: [*sealed.read(folder / "samples" / f"{key}.jsonl")] for key in parts}
    found = {name: mean_of(mean, samples) for name, mean in MEANS.items()}
    return {name: record for name, record in found.items() if record is not None}


def _record(
    work: Work,
    samples: Sequence[Mapping[str, Any]],
    source: Source,
    decontamination: Decontamination | None,
    training_text: TrainingText | None,
) -> dict[str, Any]:
    """Returns a task's record in results.json."""
    record = summarize(work.task, samples)
    record["grader"] = provenance.grader(work.task)
    record["prompts_sha256"] = hash_of(work)
    record["dropped"] = work.dropped
    record["floors"] = floors(work.task, work.examples)
    record["ceiling"] = ceiling(work.task, work.examples, unsafe=source.unsafe)
    if decontamination is not None:
        record["decontamination"] = decontamination.record(work.examples)
    if training_text is not None:
        record["training_text"] = training_text.record(work.examples)
    return record


def _before_grading(work: Work, samples: SamplesFile | None, log: Callable[[str], None]) -> None:
    """Loads what the task's grader may need, in the process that grades."""
    if samples is not None and work.task.generation and work.task.generation.symbolic:
        second_opinion.load(log)


def _lacking(work: Sequence[Work], log: Callable[[str], None]) -> dict[str, str]:
    """Returns `not_run` of process 0's machine, for all processes, and logs it."""
    own = json.dumps(toolchains.not_run(one.task for one in work))
    found: dict[str, str] = json.loads(distributed.broadcast(own))
    for key, reason in found.items():
        log(f"warning: {key}: not run: {reason}")
    return found


def _left(work: Work, samples: SamplesFile | None) -> list[Example]:
    """Returns the examples without a sample: in every process, those that process 0 lacks."""
    own = "" if samples is None else "".join("01"[one] for one in samples.left())
    return [
        one for one, bit in zip(work.sampled, distributed.broadcast(own), strict=True) if bit == "1"
    ]
