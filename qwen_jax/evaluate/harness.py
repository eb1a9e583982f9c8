"""Runs tasks on a model: reads questions, scores them, and writes samples and results.

    OUTPUT/results.json          scores, counts, protocols, hashes of data and prompts, versions
    OUTPUT/times.json            seconds of each task; the only file that differs between equal runs
    OUTPUT/samples/TASK.jsonl    every prompt with its answer, extraction and verdict
    OUTPUT/index.html            all of these to look at; it loads samples from OUTPUT/page

A run that was killed goes on where it was, and writes the same bytes.
"""

import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh
from tqdm import tqdm

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import generation, likelihood, provenance
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.page import chunks, page
from qwen_jax.evaluate.summary import Decontamination, ceiling, floors, mean_of, summarize
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import MEANS
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.scoring import Scorer
from qwen_jax.sandbox import SandboxError, languages, programs
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params
from qwen_jax.utils.append_only import AppendOnly
from qwen_jax.utils.files import write_json
from qwen_jax.utils.jsonl import write_rows


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

    def samples(self, work: "Work", examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yields the sample of each example, in any order."""
        ...


class LoadedModel:
    """A model with what scores and what generates, each compiled when it is first used.

    Args:
      batch_size: rows that are scored, and completions that are generated, at once.
      max_length: maximum tokens of a prompt and its completion; None: the model's context length.
      unsafe: as in Source.
    """

    def __init__(
        self, model: Model, *, batch_size: int, max_length: int | None, unsafe: bool = False
    ):
        self.tokenizer = model.tokenizer
        self.max_length = max_length or model.config.context_length
        self._model, self._batch_size, self.unsafe = model, batch_size, unsafe

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(
            self._model.params,
            self._model.config,
            batch_size=self._batch_size,
            max_length=self.max_length,
            mesh=self._model.mesh,
        )

    @functools.cached_property
    def engine(self) -> Engine:
        return Engine(
            self._model.params,
            self._model.config,
            tokenizer=self.tokenizer,
            max_num_seqs=self._batch_size,
            max_model_len=self.max_length,
            mesh=self._model.mesh,
        )

    def samples(self, work: "Work", examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yields the sample of each example, as it is completed.

        Raises:
          DataError: an example does not fit the model.
        """
        shown = tqdm(examples, desc=f"{work.task.key}: prompts", unit="", leave=False)
        items = [work.encode(example, self.tokenizer, self.max_length) for example in shown]
        by_token = work.task.choices is not None
        total = sum(len(row.tokens) for item in items for row in item.rows) if by_token else None
        with tqdm(
            total=len(items) if total is None else total,
            desc=work.task.key,
            unit=" tokens" if by_token else " completions",
            unit_scale=by_token,
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
        return generation.generate(self.engine, items, task, progress=progress, unsafe=self.unsafe)


class Work(NamedTuple):
    """A task's examples that are to be scored, with the worked examples of their prompts."""

    task: Task
    examples: tuple[Example, ...]
    shots: Mapping[str, tuple[Example, ...]]

    def shots_of(self, example: Example) -> tuple[Example, ...]:
        return self.shots.get(example.subject, ())[: self.task.num_shots]

    def encode(self, example: Example, tokenizer: Tokenizer, max_length: int) -> Any:
        """Returns an example as likelihood.Question or generation.Prompt.

        Raises:
          DataError: it does not fit into `max_length` tokens.
        """
        encode = generation.encode if self.task.choices is None else likelihood.encode
        return encode(self.task, example, self.shots_of(example), tokenizer, max_length)

    def prompt(self, example: Example) -> str:
        return self.task.shown(example, self.shots_of(example))


def read(task: Task, data: DataFolders, limit: int | None) -> Work:
    """Returns the questions of a task.

    Args:
      limit: number of examples; they are spread evenly over the set. None: all.

    Raises:
      DataError: files are missing, damaged, or of another version.
    """
    questions: Questions = task.read(data)
    examples = questions.examples
    if limit is not None and limit < len(examples):
        examples = tuple(examples[i * len(examples) // limit] for i in range(limit))
    return Work(task, examples, questions.shots)


def run(
    source: Source,
    work: Sequence[Work],
    data: DataFolders,
    output: str | os.PathLike,
    *,
    identity: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    decontamination: Decontamination | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Scores all tasks, writes OUTPUT, and returns the content of results.json.

    Args:
      source: the model.
      identity: what determines the results; a resumed evaluation must have the same.
      about: what else results.json says, and a resumed evaluation may change.
      decontamination: the index of test sets that the training text was filtered with.

    Raises:
      ConfigError: OUTPUT belongs to another evaluation, or another process writes to it.
      DataError: an example does not fit the model.
    """
    folder = pathlib.Path(output)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        **identity,
        **(about or {}),
        "versions": provenance.versions(),
        "data": data.hashes,
        "tasks": {},
        "means": {},
        "not_run": {},
    }
    times, by_task = {}, {}
    for one in work:
        if (reason := not_run(one.task)) is not None:
            results["not_run"][one.task.key] = reason
            log(f"warning: {one.task.key}: not run: {reason}")
            continue
        begin = time.monotonic()
        samples = _run_task(one, source, folder, identity)
        record = summarize(one.task, samples)
        record["grader"] = provenance.grader(one.task)
        record["prompts_sha256"] = hash_of(one)
        record["floors"] = floors(one.task, one.examples)
        record["ceiling"] = ceiling(one.task, one.examples, unsafe=source.unsafe)
        if decontamination is not None:
            record["decontamination"] = decontamination.record(one.examples)
        results["tasks"][one.task.key] = record
        times[one.task.key] = round(time.monotonic() - begin, 3)
        by_task[one.task.key] = samples
        _warn(one, record, log)
        chunks.write(folder / "page", one.task.key, samples)
    for name, mean in MEANS.items():
        if (record := mean_of(mean, by_task)) is not None:
            results["means"][name] = record
    results["data"] = dict(sorted(data.hashes.items()))
    write_json(folder / "results.json", results)
    write_json(folder / "times.json", times)
    page.write(folder, results, {one.task.key: one.task for one in work})
    return results


def not_run(task: Task) -> str | None:
    """Returns why a task cannot be run on this machine: its language has no toolchain here."""
    if task.generation is None or not task.generation.sandboxed:
        return None
    lacking = languages.missing().get(task.generation.language)
    return None if lacking is None else f"no {task.generation.language}: install {lacking}"


def require_sandbox(
    work: Sequence[Work], *, unsafe: bool = False, skip: bool = False, flag: str = "--tasks"
) -> None:
    """Refuses tasks whose programs cannot be run here, before anything else is done.

    Args:
      unsafe: as in Source.
      skip: whether a task without a toolchain is left out by `run`, as long as another one is left.
      flag: for errors.

    Raises:
      SandboxError: code cannot be isolated here, or a toolchain is missing.
    """
    if any(one.task.generation is not None and one.task.generation.sandboxed for one in work):
        programs.python(unsafe)
    reasons = [not_run(one.task) for one in work]
    found = sorted({reason for reason in reasons if reason is not None})
    if found and not (skip and None in reasons):
        keys = [one.task.key for one, reason in zip(work, reasons, strict=True) if reason]
        raise SandboxError(
            f"{', '.join(keys)} cannot be run here: {'; '.join(found)}.",
            flag,
            "install it, or leave the task out.",
        )


def hash_of(work: Work) -> str:
    """Returns a SHA-256 over all prompts and choices."""
    digest = hashlib.sha256()
    for example in work.examples:
        choices = [] if work.task.choices is None else work.task.choices(example)
        line = [example.id, work.prompt(example), *choices, example.answer]
        digest.update(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def prompts(work: Work) -> Iterator[dict[str, Any]]:
    """Yields every prompt as a record, without a model."""
    for example in work.examples:
        choices = None if work.task.choices is None else list(work.task.choices(example))
        yield {
            "task": work.task.key,
            "id": example.id,
            "prompt": work.prompt(example),
            "choices": choices,
        }


def _run_task(
    work: Work, source: Source, folder: pathlib.Path, identity: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns the samples of a task in order, those of an earlier attempt included."""
    path = folder / "samples" / f"{work.task.key}.jsonl"
    wanted = {
        **identity,
        "task": work.task.key,
        "prompts": hash_of(work),
        "grader": provenance.grader(work.task),
    }
    with AppendOnly(path.with_name(path.name + ".partial"), wanted) as partial:
        done = {row["id"]: row for row in partial.rows}
        left = [example for example in work.examples if example.id not in done]
        for sample in source.samples(work, left) if left else ():
            if "error" not in sample:  # an error is tried again
                partial.add(sample)
            done[sample["id"]] = sample
        ordered = [done[example.id] for example in work.examples]
        write_rows(path, ordered)
    return ordered


def _warn(work: Work, record: Mapping[str, Any], log: Callable[[str], None]) -> None:
    key, n = work.task.key, record["n"]
    if record["truncated"]:
        log(f"warning: {key}: {record['truncated']} of {n} prompts lost their beginning")
    if record["errors"]:
        log(
            f"warning: {key}: {record['errors']} of {n} examples got no answer and count as wrong; "
            "the same command tries them again"
        )
    if record["ties"] > 0.01 * n:
        log(f"warning: {key}: {record['ties']} of {n} examples have choices of equal likelihood")
    if record["ties"] == n and n > 1:
        raise ConfigError(
            "all choices of all examples have equal likelihood.",
            key,
            "check the model: it does not tell the choices apart.",
        )
    guarded = record.get("decontamination")
    if guarded is not None and guarded["not_in_index"]:
        log(
            f"note: {key}: {guarded['not_in_index']} of {n} examples are not in the index of test "
            "sets that the training text was filtered with; the text may contain them"
        )
    if not work.task.checked:
        log(f"note: {key}: not checked against published data")
