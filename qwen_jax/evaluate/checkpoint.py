"""Evaluates a checkpoint or a server: from names of tasks to results.json."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from qwen_jax.errors import ConfigError
from qwen_jax.evaluate import harness
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.server.client import Server
from qwen_jax.evaluate.server.model import ServedModel
from qwen_jax.evaluate.summary import Decontamination
from qwen_jax.evaluate.tasks import select
from qwen_jax.inference.jsonl import fingerprint
from qwen_jax.pretrained.load import load_model


def run(
    checkpoint: str | os.PathLike | harness.Model | Server,
    tasks: Sequence[str],
    *,
    data: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    limit: int | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    tokenizer: str | None = None,
    mesh: Mesh | None = None,
    allow_nonfinite: bool = False,
    unsafe: bool = False,
    decontamination: Decontamination | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Scores a model on tasks and writes `output`; an evaluation that was killed goes on.

    Args:
      checkpoint: a run folder, a folder in the Qwen or Qwen2 layout, a loaded model, or a server.
      tasks: names of tasks and suites (qwen_jax.evaluate.TASKS).
      data: folders with the files of the benchmarks.
      limit: maximum examples of a task, spread over the set; None: all.
      batch_size: rows per device that are computed at once; a CPU computes one.
      max_length: maximum tokens of a prompt; longer ones lose their beginning. None: the model's
        context length.
      tokenizer, mesh, allow_nonfinite: as in pretrained.load.load_model, for a folder.
      unsafe: run programs of code tasks even where the kernel isolates neither files nor network.
      decontamination: the index of test sets that the training text was filtered with.

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
    work = [harness.read(task, files, limit) for task in select(tuple(tasks))]
    harness.require_sandbox(work, unsafe=unsafe, skip=True)  # before the model is loaded
    source: harness.Source
    if isinstance(checkpoint, Server):
        if max_length is not None:
            raise ConfigError(
                "a server cuts prompts by its own rules.", "--max_length", "leave it out."
            )
        served = ServedModel(checkpoint, unsafe=unsafe)
        source, name, identity, about = served, checkpoint.url, *_of_server(served)
    else:
        if isinstance(checkpoint, harness.Model):
            model, name = checkpoint, "engine"
        else:
            name = os.fspath(checkpoint)
            loaded = load_model(name, tokenizer, mesh=mesh, allow_nonfinite=allow_nonfinite)
            model = harness.Model(*loaded, mesh)
        source = harness.LoadedModel(
            model, batch_size=batch_size, max_length=max_length, unsafe=unsafe
        )
        identity, about = _of_model(model, source.max_length), {"checkpoint": name}
    log(f"{name}: {', '.join(f'{one.task.key} ({len(one.examples):,})' for one in work)}")
    identity["limit"] = limit
    return harness.run(
        source,
        work,
        files,
        output,
        identity=identity,
        about=about,
        decontamination=decontamination,
        log=log,
    )


def _of_model(model: harness.Model, max_length: int) -> dict[str, Any]:
    return {
        "model": fingerprint(model.config, model.params),
        "tokenizer": model.tokenizer.fingerprint,
        "dtype": model.config.compute_dtype,
        "platform": jax.devices()[0].platform,
        "max_length": max_length,
    }


def _of_server(served: ServedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """What must stay the same, and what may change: a server may get another address."""
    tokenizer = None if served.tokenizer is None else served.tokenizer.fingerprint
    return {"model": served.client.model, "tokenizer": tokenizer, "platform": "server"}, {
        "server": served.client.base
    }
