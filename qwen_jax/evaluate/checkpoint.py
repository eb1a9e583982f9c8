"""Evaluates a checkpoint or a server: from names of tasks to results.json."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import harness
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.prompts import questions
from qwen_jax.evaluate.samples.sampling import GREEDY, Sampling
from qwen_jax.evaluate.server.client import Server
from qwen_jax.evaluate.server.model import ServedModel
from qwen_jax.evaluate.summary import Decontamination, TrainingText
from qwen_jax.evaluate.tasks import select
from qwen_jax.evaluate.tasks.code import toolchains
from qwen_jax.inference import chat
from qwen_jax.inference.engine import Engine
from qwen_jax.inference.jsonl import fingerprint
from qwen_jax.pretrained.load import load_model
from qwen_jax.utils.append_only import PATHS


def run(
    checkpoint: str | os.PathLike | harness.Model | Engine | Server,
    tasks: Sequence[str],
    *,
    data: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    limit: int | None = None,
    sampling: Sampling = GREEDY,
    batch_size: int = 16,
    max_length: int | None = None,
    tokenizer: str | None = None,
    mesh: Mesh | None = None,
    allow_nonfinite: bool = False,
    unsafe: bool = False,
    decontamination: Decontamination | None = None,
    training_text: TrainingText | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Scores a model on tasks and writes `output`; an evaluation that was killed goes on.

    Args:
      checkpoint: a run folder, a released dense Qwen to Qwen3, a loaded model, an
        engine that is idle (with its tokenizer and settings), or a server.
      tasks: names of tasks and suites (qwen_jax.evaluate.TASKS).
      data: folders with the files of the benchmarks.
      limit: maximum examples of a task, spread over the set; None: all.
      sampling: of completions; several of each question give pass@k.
      batch_size: rows per device that are computed at once; a CPU computes one.
      max_length: maximum tokens of a prompt; longer ones lose their beginning. None: the model's
        context length.
      tokenizer, mesh, allow_nonfinite: as in pretrained.load.load_model, for a folder.
      unsafe: run programs of code tasks even where the kernel isolates neither files nor network.
      decontamination: the index of test sets that the training text was filtered with.
      training_text: training text to be searched for the examples, before the model is loaded.

    Returns:
      The content of results.json; scores are in percent.

    Raises:
      ConfigError: a task is unknown, or `output` belongs to another evaluation.
      DataError: files are missing, damaged, or of another version.
      SandboxError: a task runs programs, which cannot be isolated here.
      ServerError: the server does not answer.
    """
    folders = [data] if isinstance(data, (str, os.PathLike)) else data
    files = DataFolders(folders)
    # All questions are read before the model is loaded.
    work = _read(tasks, files, limit, sampling, log)
    if training_text is not None:
        training_text = training_text.searched([e for one in work for e in one.examples], log)
    toolchains.require_sandbox(
        [one.task for one in work], unsafe=unsafe, skip=True
    )  # before the model is loaded
    source: harness.Source
    if isinstance(checkpoint, Server):
        served = _served(checkpoint, max_length, unsafe)
        source, name, (identity, about) = served, checkpoint.url, _of_server(served)
    else:
        if isinstance(checkpoint, (harness.Model, Engine)):
            model, name, paths = checkpoint, "engine", {}
        else:
            name = os.fspath(checkpoint)
            loaded = load_model(name, tokenizer, mesh=mesh, allow_nonfinite=allow_nonfinite)
            model = harness.Model(*loaded, mesh)
            paths = {PATHS: {"model": name, "tokenizer": tokenizer or name}}
        source = harness.LoadedModel(
            model,
            batch_size=batch_size,
            max_length=max_length,
            unsafe=unsafe,
            grades=jax.process_index() == 0,
        )
        identity, about = _of_model(model, source) | paths, {"checkpoint": name}
        log(_devices(model.mesh))
        log(_context(model.config, source.max_length, chosen=max_length is not None))
    log(f"{name}: {', '.join(f'{one.task.key} ({_count(one)})' for one in work)}")
    return harness.run(
        source,
        work,
        files,
        output,
        identity=identity | {"limit": limit, **sampling.record()},
        about=about,
        decontamination=decontamination,
        training_text=training_text,
        log=log,
    )


def _read(
    tasks: Sequence[str],
    files: DataFolders,
    limit: int | None,
    sampling: Sampling,
    log: Callable[[str], None],
) -> list[questions.Work]:
    """Returns all questions with `sampling`, which the likelihoods of choices do not depend on.

    Raises:
      ConfigError: a task is unknown, or none generates text, so that `sampling` has no effect.
      DataError: files are missing, damaged, or of another version.
    """
    work = questions.read_all(select(tuple(tasks)), files, limit)
    for sentence in files.differing():
        log(f"note: {sentence} Scores of another version may differ.")
    chosen = [one.task.key for one in work if one.task.generation is None]
    if not sampling.is_greedy and len(chosen) == len(work):
        raise ConfigError(
            f"no task samples completions: {', '.join(chosen)} compare likelihoods of choices.",
            "--samples, --temperature",
            "leave them out, or add a task that generates text, such as humaneval or gsm8k.",
        )
    if sampling.variables and not any(one.task.chat for one in work):
        raise ConfigError(
            f"no task is a conversation: {', '.join(one.task.key for one in work)}.",
            "--chat_template_kwargs",
            "leave it out, or add a task with the chat template, such as humaneval_chat.",
        )
    if not sampling.is_greedy and chosen:
        log(f"note: {', '.join(chosen)}: choices are compared, so nothing is sampled")
    return [one._replace(sampling=sampling) for one in work]


def _count(work: questions.Work) -> str:
    count, every = len(work.examples), len(work.sampled)
    return f"{count:,}" + (f" x {every // count} samples" if every > count else "")


def _served(server: Server, max_length: int | None, unsafe: bool) -> ServedModel:
    """Connects to a server.

    Raises:
      ConfigError: a setting has no effect on a server.
    """
    if max_length is not None:
        raise ConfigError(
            "a server cuts prompts by its own rules.", "--max_length", "leave it out."
        )
    if jax.process_count() > 1:
        raise ConfigError(
            f"{jax.process_count()} processes would send the same requests to the server.",
            "--server",
            "start one process.",
        )
    return ServedModel(server, unsafe=unsafe)


def _context(config: ModelConfig, tokens: int, *, chosen: bool) -> str:
    """Returns a sentence about the context, which serve and chat extend without being told."""
    longest = chat.longest_context(config)
    sentence = f"context: {chat.context(config, tokens)[1]}"
    if chosen or tokens >= longest:
        return sentence
    return (
        f"{sentence}; serve and chat extend it to {longest:,}, and so does --max_length={longest}"
    )


def _of_model(model: harness.Model | Engine, source: harness.LoadedModel) -> dict[str, Any]:
    """What determines the results. Devices that only split rows do not."""
    found = {
        "model": fingerprint(model.config, model.params),
        "tokenizer": source.tokenizer.fingerprint,
        "dtype": model.config.compute_dtype,
        "platform": jax.devices()[0].platform,
        "tensor": 1 if model.mesh is None else model.mesh.shape["tensor"],
        "max_length": source.max_length,
    }
    return found | ({"cache_dtype": model.cache_dtype} if isinstance(model, Engine) else {})


def _devices(mesh: Mesh | None) -> str:
    """Returns a sentence about the devices that are used."""
    first = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if mesh is None or mesh.size == 1:
        return f"1 device of {jax.device_count()} ({first.device_kind})"
    tensor, processes = mesh.shape["tensor"], jax.process_count()
    where = f"{processes} process{'es' * (processes > 1)}"
    weights = f"; weights are sharded over {tensor}" if tensor > 1 else ""
    return (
        f"{mesh.size} devices of {jax.device_count()} ({first.device_kind}) in {where}; "
        f"rows are split over {mesh.size // tensor}{weights}"
    )


def _of_server(served: ServedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """What must stay the same, and what may change: a server may get another address."""
    tokenizer = None if served.tokenizer is None else served.tokenizer.fingerprint
    return {"model": served.client.model, "tokenizer": tokenizer, "platform": "server"}, {
        "server": served.client.base
    }
