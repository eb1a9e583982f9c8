"""Benchmarks during training, on a fixed part of their questions. Report: 2.6.

All questions are read and encoded before the first step. Each evaluation scores the same ones with
the current weights; programs are compiled at the first evaluation only.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from qwen_jax.config import MeshConfig, ModelConfig, TrainConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import harness
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.likelihood import Question
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.summary import summarize
from qwen_jax.evaluate.tasks import select
from qwen_jax.evaluate.tasks.code import toolchains
from qwen_jax.grading.symbolic import second_opinion
from qwen_jax.inference.chat import context
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.ranges import ONE_OR_MORE, Checked
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.supervised import Benchmarks
from qwen_jax.types import Params


@dataclasses.dataclass(frozen=True)
class TaskEvaluation(Checked, where="--evaluate.{}"):
    """Benchmarks that are run during training."""

    tasks: tuple[str, ...] = option(
        (), "benchmarks to run during training (experiments.evaluate lists them); none if empty"
    )
    data: tuple[str, ...] = option((), "folders with the files of the benchmarks")
    every: int | None = option(
        None,
        "steps between two evaluations, a multiple of train.eval_every; None: train.eval_every",
        ONE_OR_MORE,
    )
    limit: int | None = option(
        100, "maximum examples of a task, spread evenly over it; None: all", ONE_OR_MORE
    )
    max_length: int | None = option(
        None,
        "maximum tokens of a prompt and its completion; None: model.context_length, and longer "
        "ones are extended as in inference (dynamic NTK, YaRN)",
        ONE_OR_MORE,
    )
    batch_size: int = option(
        16, "prompts per device that are scored at once; a CPU scores one", ONE_OR_MORE
    )


def prepare(
    settings: TaskEvaluation,
    model: ModelConfig,
    train: TrainConfig,
    tokenizer: Tokenizer,
    mesh: MeshConfig,
    log: Callable[[str], None],
) -> Benchmarks | None:
    """Returns evaluate(completed steps, params, last) -> metrics; None if no tasks are set.

    The metrics are eval/TASK/score and eval/TASK/score_stderr, in percent. There are none for a
    step between two evaluations, unless it is the `last` one.

    Args:
      mesh: the mesh of the run.
      log: receives a line for each evaluation.

    Raises:
      ConfigError: a task is unknown, or a setting has no effect.
      DataError: files are missing, damaged, or of another version; or the model's context is too
        short for a task.
      SandboxError: a task runs programs, which cannot be isolated here.
    """
    if not settings.tasks:
        unused = [
            field.name
            for field in dataclasses.fields(settings)
            if getattr(settings, field.name) != field.default
        ]
        if unused:
            raise ConfigError(
                f"evaluate.{unused[0]} has no effect without tasks.",
                f"--evaluate.{unused[0]}",
                "set --evaluate.tasks, or remove it.",
            )
        return None
    every = _every(settings, train)
    data = DataFolders(settings.data)
    work = questions.read_all(select(settings.tasks, "--evaluate.tasks"), data, settings.limit)
    # Before the first step.
    toolchains.require_sandbox([one.task for one in work], flag="--evaluate.tasks")
    length = settings.max_length or model.context_length
    items = [[one.encode(example, tokenizer, length) for example in one.examples] for one in work]
    # A cache of the model's whole context may not fit next to the state of the optimizer.
    longest = max((_tokens(item) for own in items for item in own), default=1)
    config = dataclasses.replace(model, dropout=0.0)
    counts = ", ".join(f"{one.task.key} ({len(one.examples):,})" for one in work)
    log(f"benchmarks {_when(every, train)}: {counts}")
    if length != model.context_length:
        log(f"context of the benchmarks: {context(model, length)[1]}")
    if any(one.task.generation and one.task.generation.symbolic for one in work):
        second_opinion.load(log)
    for one, own in zip(work, items, strict=True):
        one.log_dropped(log)
        if lost := sum(item.lost > 0 for item in own):
            log(f"warning: {one.task.key}: {lost} of {len(own)} prompts lost their beginning")

    def evaluate(done: int, params: Params, last: bool) -> dict[str, float]:
        if done % every and not last:
            return {}
        loaded = harness.LoadedModel(
            harness.Model(config, params, tokenizer, make_mesh(mesh)),
            batch_size=settings.batch_size,
            max_length=longest,
        )
        found, parts = {}, []
        for one, own in zip(work, items, strict=True):
            scored = sorted(loaded.score(one.task, own, lambda done: None), key=lambda x: x[0])
            samples = [sample for _, sample in scored]
            record = summarize(one.task, samples)
            score, error = record["score"], record["stderr"]
            found[f"eval/{one.task.key}/score"] = score
            found[f"eval/{one.task.key}/score_stderr"] = error
            parts.append(f"{one.task.key} {score:.1f} ± {error:.1f}")
        log(f"step {done}  benchmarks (%): {'  '.join(parts)}")
        return found

    return evaluate


def _when(every: int, train: TrainConfig) -> str:
    """Returns which steps the benchmarks run after; they always run after the last one."""
    if every < train.num_steps:
        return f"every {every:,} steps"
    return (
        f"after the last step only (--evaluate.every and --train.eval_every are {every:,} steps, "
        f"and --train.num_steps is {train.num_steps:,})"
    )


def _tokens(item: Any) -> int:
    """Returns the tokens of a likelihood.Question or a generation.Prompt with its completion."""
    if isinstance(item, Question):
        return max(len(row.tokens) for row in item.rows)
    return len(item.request.prompt) + item.request.sampling.max_new_tokens


def _every(settings: TaskEvaluation, train: TrainConfig) -> int:
    """Returns the steps between two evaluations, which happen with those of held-out text."""
    if not settings.data:
        raise ConfigError(
            "no data of the benchmarks are set.",
            "--evaluate.data",
            "pass the folders of the files.",
        )
    own = train.eval_every or train.num_steps
    every = own if settings.every is None else settings.every
    if every % own:
        raise ConfigError(
            f"evaluate.every={every} is not a multiple of train.eval_every={train.eval_every}.",
            "--evaluate.every",
            "use a multiple, or change --train.eval_every.",
        )
    return every
