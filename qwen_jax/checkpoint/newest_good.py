"""Chooses the step to restore: the latest one whose files are all intact."""

import itertools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from qwen_jax.checkpoint import description, manifest, step_folders
from qwen_jax.checkpoint.shared_hashing import HashTogether
from qwen_jax.checkpoint.step_lock import ReadLock, lock
from qwen_jax.checkpoint.unreadable import exists, unreadable
from qwen_jax.errors import CheckpointError

_rounds = itertools.count()  # the same in all processes
_ATTEMPTS = 10  # a run that deletes a step has saved a newer one


class _Vanished(Exception):
    """A run deleted or replaced the step while it was verified."""


def choose(
    folder: pathlib.Path,
    step: int | None,
    *,
    set_aside: bool,
    log: Callable[..., None] = lambda event, **details: None,
) -> tuple[int, ReadLock] | None:
    """Returns the latest valid step (or `step`), chosen by process 0 for all processes.

    All processes hash the files together.

    Args:
      step: the only step to check; None: the latest valid one.
      set_aside: whether to rename corrupted steps that are newer than the valid one.
      log: receives the event "damaged" for each corrupted step.

    Returns:
      The step and a lock that keeps it from being deleted; None if there is no checkpoint.

    Raises:
      CheckpointError: `step` is missing or corrupted, or all steps are corrupted; or a step cannot
        be read, which is not damage. Nothing is changed then.
    """
    chosen, held, problem = -1, None, None
    together = HashTogether(f"verify {folder} {next(_rounds)}", manifest.entry_of)
    if jax.process_index() == 0:
        try:
            chosen, held = _newest_good(folder, step, set_aside, log, together)
        except CheckpointError as error:
            chosen, problem = -2, error
        finally:
            together.finish()
    else:
        together.serve()
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen == -2:
        raise problem or CheckpointError(
            "process 0 found no valid checkpoint.", str(folder), "see the error of process 0."
        )
    return None if chosen == -1 else (chosen, held or lock(folder / str(chosen)))


def _newest_good(
    folder: pathlib.Path,
    step: int | None,
    set_aside: bool,
    log: Callable[..., None],
    together: HashTogether,
) -> tuple[int, ReadLock | None]:
    """Returns the chosen step, -1 if there is none, and its lock."""
    for _ in range(_ATTEMPTS):
        # A listing may miss a step that is renamed meanwhile, after the older one was deleted.
        present = step_folders.numbered(folder) or step_folders.numbered(folder)
        if step is not None and step not in present:
            raise CheckpointError(
                f"no checkpoint found for step {step}.",
                str(folder),
                f"choose one of these steps: {', '.join(map(str, present))}."
                if present
                else "pass the checkpoint folder of another run: this one has no checkpoints.",
            )
        try:
            return _verified(
                folder,
                [step] if step is not None else present[::-1],
                step is None,
                set_aside,
                log,
                together,
            )
        except _Vanished:
            continue
    raise CheckpointError(
        f"a run deleted each of {_ATTEMPTS} steps while it was verified.",
        str(folder),
        "run the command again, or keep more steps with the run's --train.keep_checkpoints.",
    )


def _verified(
    folder: pathlib.Path,
    candidates: list[int],
    latest: bool,
    set_aside: bool,
    log: Callable[..., None],
    together: HashTogether,
) -> tuple[int, ReadLock | None]:
    """Returns the first intact candidate and its lock; (-1, None) if there are no candidates."""
    damaged: dict[int, str] = {}
    good: tuple[int, ReadLock | None] = -1, None
    for candidate in candidates:
        held, bad = _verify(folder / str(candidate), together)
        if not bad:
            good = candidate, held
            break
        damaged[candidate] = "; ".join(bad)
    for candidate, bad in damaged.items():
        moved = "not changed"
        if set_aside and latest and good[1]:  # else a later start would find no checkpoints at all
            moved = f"set aside as {step_folders.set_aside(folder / str(candidate))}"
        logging.error("%s: corrupted checkpoint: step %d: %s; %s", folder, candidate, bad, moved)
        log("damaged", step=candidate, problem=bad[:500], now=moved)
    if damaged and not good[1]:
        reports = ". ".join(f"step {candidate}: {bad}" for candidate, bad in damaged.items())
        raise CheckpointError(
            f"no valid checkpoint found. {reports}.",
            str(folder),
            "restore the files from a backup, or pass another run."
            if latest and not set_aside
            else "restore the files from a backup; --restart_from_scratch moves them to before-N/ "
            "and begins the run again."
            if latest
            else "omit the step to use the latest valid one.",
        )
    return good


def _verify(path: pathlib.Path, together: HashTogether) -> tuple[ReadLock | None, list[str]]:
    """Locks a step and reads all its files; returns the lock and the damage found.

    Raises:
      CheckpointError: a file exists but cannot be read.
      _Vanished: the step was deleted or replaced meanwhile.
    """
    held = None
    try:
        held = ReadLock(path)
    except (FileNotFoundError, IsADirectoryError):
        pass
    except OSError as error:
        raise unreadable(path / manifest.NAME, error) from error
    try:
        bad = manifest.problems(path, together=together)
        if not bad and (found := description.read(path)["step"]) != int(path.name):
            bad = [f"it contains step {found}"]
    except CheckpointError:
        if held and not held.holds():
            raise _Vanished from None
        raise
    if not (held.holds() if held else exists(path)):
        raise _Vanished
    return held, bad
