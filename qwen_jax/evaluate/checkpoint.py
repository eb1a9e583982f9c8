"""Evaluates a checkpoint: from a folder and names of tasks to results.json."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from qwen_jax.evaluate import harness
from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.tasks import select
from qwen_jax.inference.jsonl import fingerprint
from qwen_jax.pretrained.load import load_model


def run(
    checkpoint: str | os.PathLike | harness.Model,
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
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Scores a model on tasks and writes `output`; an evaluation that was killed goes on.

    Args:
      checkpoint: a run folder, a folder in the Qwen or Qwen2 layout, or a loaded model.
      tasks: names of tasks and suites (qwen_jax.evaluate.TASKS).
      data: folders with the files of the benchmarks.
      limit: maximum examples of a task, spread over the set; None: all.
      batch_size: rows per device that are computed at once; a CPU computes one.
      max_length: maximum tokens of a prompt; longer ones lose their beginning. None: the model's
        context length.
      tokenizer, mesh, allow_nonfinite: as in pretrained.load.load_model, for a folder.

    Returns:
      The content of results.json; scores are in percent.

    Raises:
      ConfigError: a task is unknown, or `output` belongs to another evaluation.
      DataError: files are missing, damaged, or of another version.
    """
    folders = [data] if isinstance(data, (str, os.PathLike)) else data
    files = DataFolders(folders)
    # All questions are read before the model is loaded.
    work = [harness.read(task, files, limit) for task in select(tuple(tasks))]
    if isinstance(checkpoint, harness.Model):
        model, name = checkpoint, "engine"
    else:
        name = os.fspath(checkpoint)
        loaded = load_model(name, tokenizer, mesh=mesh, allow_nonfinite=allow_nonfinite)
        model = harness.Model(*loaded, mesh)
    identity = {
        "model": fingerprint(model.config, model.params),
        "tokenizer": model.tokenizer.fingerprint,
        "dtype": model.config.compute_dtype,
        "platform": jax.devices()[0].platform,
        "max_length": max_length or model.config.context_length,
        "limit": limit,
    }
    log(f"{name}: {', '.join(f'{one.task.key} ({len(one.examples):,})' for one in work)}")
    return harness.run(
        model,
        work,
        files,
        output,
        batch_size=batch_size,
        max_length=max_length,
        identity=identity,
        log=log,
    )
