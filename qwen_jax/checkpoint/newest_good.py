"""Chooses the step to restore: the latest one whose files are all intact."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from qwen_jax.checkpoint import description, manifest, step_folders
from qwen_jax.errors import CheckpointError


def choose(
    folder: pathlib.Path,
    step: int | None,
    *,
    set_aside: bool,
    log: Callable[..., None] = lambda event, **details: None,
) -> int | None:
    """Returns the latest valid step (or `step`), chosen by process 0 for all processes.

    Args:
      step: the only step to check; None: the latest valid one.
      set_aside: whether to rename corrupted steps.
      log: receives the event "damaged" for each corrupted step.

    Returns:
      The step, or None if there is no checkpoint.

    Raises:
      CheckpointError: `step` is missing or corrupted, or all steps are corrupted.
    """
    chosen, problem = -1, None
    if jax.process_index() == 0:
        try:
            chosen = _newest_good(folder, step, set_aside, log)
        except CheckpointError as error:
            chosen, problem = -2, error
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen == -2:
        raise problem or CheckpointError(
            "process 0 found no valid checkpoint.", str(folder), "see the error of process 0."
        )
    return None if chosen == -1 else chosen


def _newest_good(
    folder: pathlib.Path, step: int | None, set_aside: bool, log: Callable[..., None]
) -> int:
    present = step_folders.numbered(folder)
    if step is not None and step not in present:
        raise CheckpointError(
            f"no checkpoint found for step {step}.",
            str(folder),
            f"choose one of these steps: {', '.join(map(str, present))}."
            if present
            else "pass the checkpoint folder of another run: this one has no checkpoints.",
        )
    reports = []
    for candidate in [step] if step is not None else reversed(present):
        path = folder / str(candidate)
        bad = manifest.problems(path)
        if not bad and (held := description.read(path)["step"]) != candidate:
            bad = [f"it contains step {held}"]
        if not bad:
            return candidate
        reports.append(f"step {candidate}: {'; '.join(bad)}")
        moved = "not changed"
        if set_aside and step is None:
            moved = f"set aside as {step_folders.set_aside(path)}"
        logging.error("%s: corrupted checkpoint: %s; %s", folder, reports[-1], moved)
        log("damaged", step=candidate, problem="; ".join(bad)[:500], now=moved)
    if reports:
        raise CheckpointError(
            f"no valid checkpoint found. {'. '.join(reports)}.",
            str(folder),
            "restore the files from a backup, or start a new run in an empty folder."
            if step is None
            else "omit the step to use the latest valid one.",
        )
    return -1
