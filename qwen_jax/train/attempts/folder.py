"""What is in a run folder decides how an attempt begins: a new run, a resumed one, or a restart.

A run that has ever saved a checkpoint never begins again by itself. If none can be restored, it
stops, and --restart_from_scratch is the way to begin again: it moves the old files to before-N/ in
the run folder. The flag acts when it is new: config.json records it, and an attempt that finds it
there resumes. A job that is requeued with the flag therefore restarts once.
"""

import fnmatch
import os
import pathlib
import re
import shutil
from typing import Literal, NamedTuple

from qwen_jax.errors import (
    CheckpointError,
    DataError,
    QwenJaxError,
    TrainingError,
    UnreadableError,
)
from qwen_jax.tokenizer import settings as tokenizer_settings
from qwen_jax.train.attempts.staged import local
from qwen_jax.utils.files import read_json, sync_folder
from qwen_jax.utils.jsonl import read_rows

CHECKPOINTS, EVENTS, CONFIG = "checkpoints", "events.jsonl", "config.json"
# What a restart moves, in this order: the folder that may be impossible to move is first, and the
# file that says that the run exists is last. The data of a run may be in its folder, and stays.
_FILES = (
    CHECKPOINTS,
    "metrics.jsonl*",
    f"{EVENTS}*",
    "tensorboard",
    "wandb.json",
    "wandb",
    "hangs",
    "profile",
    "plots",
    "inputs.json",
    "base.json",
    "value_base.json",
    "calibration.json",
    "report.html",
    "versions.json",
    "released_config.json",
    "generation_config.json",
    CONFIG,
)
# Files that a run writes after the event "start". With them, a log without events was lost.
_LATER_FILES = ("metrics.jsonl", "inputs.json", "report.html")
_MOVING = ".moving"  # suffix of before-N until it is complete
Beginning = Literal["new", "resume", "restart"]


class Saved(NamedTuple):
    """The checkpoints of a run."""

    steps: tuple[str, ...]  # names of folders that may be restored
    set_aside: tuple[str, ...]  # names of other folders of steps, such as 100.corrupt
    logged: int  # number of saves in events.jsonl; 0: not read, because there are steps


def beginning(run_dir: str | os.PathLike, *, restart: bool) -> Beginning:
    """Returns how an attempt in this folder begins.

    Args:
      restart: --restart_from_scratch.

    Raises:
      CheckpointError: the run has saved, but nothing can be restored, or that cannot be read.
    """
    folder = local(run_dir)
    new_request = restart and not _restarted_before(folder)
    try:
        saved = saved_in(folder)
    except CheckpointError:
        if new_request:
            return "restart"
        raise
    if saved.steps:
        return "restart" if new_request else "resume"
    if not saved.set_aside and not saved.logged:
        return "new"
    # A missing folder may be a mount that is late; a requeued job must not restart because of it.
    if new_request or (restart and saved.set_aside):
        return "restart"
    raise nothing_to_restore(folder, saved)


def saved_in(folder: pathlib.Path) -> Saved:
    """Returns what a run folder knows about its checkpoints.

    Raises:
      CheckpointError: the folder of checkpoints, or the log of events, cannot be read, or the log
        is gone while other files show that there was one.
    """
    try:
        names = sorted(os.listdir(folder / CHECKPOINTS))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise _unreadable(folder / CHECKPOINTS, error) from error
    names = [name for name in names if re.match(r"\d", name) and not name.endswith(".saving")]
    # A killed process leaves N.replaced, which the next start may rename to N.
    steps = tuple(name for name in names if re.fullmatch(r"\d+(\.replaced)?", name))
    if steps:
        return Saved(steps, (), 0)
    try:
        rows = [row for _, row in read_rows(folder / EVENTS, bad=[])]
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            rows = []
        else:
            raise _unreadable(folder / EVENTS, error) from error
    logged = sum(row.get("event") == "saved" for row in rows)
    later = [name for name in _LATER_FILES if _size(folder / name)]
    if not rows and not names and later:
        raise CheckpointError(
            f"cannot tell whether this run has saved checkpoints: {EVENTS} has no event, although "
            f"{' and '.join(later)} of the run {'exists' if len(later) == 1 else 'exist'}, and "
            f"{CHECKPOINTS}/ has no step.",
            str(folder),
            f"restore {EVENTS} or {CHECKPOINTS}/. --restart_from_scratch moves the old files to "
            "before-N/ and begins again; nothing was changed.",
        )
    return Saved((), tuple(names), logged)


def nothing_to_restore(folder: pathlib.Path, saved: Saved | None = None) -> CheckpointError:
    """Returns the error of a run that has saved, and has no step left to restore."""
    kind, found = CheckpointError, "the folder contains no step"
    if saved is not None and saved.set_aside:
        found = f"the folder contains only {', '.join(saved.set_aside[:5])}"
    elif not (folder / CHECKPOINTS).is_dir():
        kind, found = UnreadableError, "the folder is missing"  # a mount may be late
    return kind(
        f"this run has saved checkpoints, but none can be restored: {found}.",
        str(folder / CHECKPOINTS),
        "if it is on a file system that is not mounted yet, run the command again later; otherwise "
        "restore it from a backup. --restart_from_scratch moves the old files to before-N/ and "
        "begins again; if the run was already restarted with that flag, use another --run_dir.",
    )


def _unreadable(path: pathlib.Path, error: Exception) -> CheckpointError:
    reason = error.what if isinstance(error, QwenJaxError) else f"{error}."
    return CheckpointError(
        f"cannot tell whether this run has saved checkpoints: {reason}",
        str(path),
        "make it readable (permissions, the file system) and run the command again; nothing was "
        "changed.",
    )


def _size(path: pathlib.Path) -> int:
    """Returns the bytes of a file, 0 if it is missing."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _unreadable(path, error) from error


def _restarted_before(folder: pathlib.Path) -> bool:
    try:
        return read_json(folder / CONFIG).get("restart_from_scratch") is True
    except (DataError, OSError):
        return False


def move_aside(folder: pathlib.Path) -> str:
    """Moves the files of the run to before-N/ and returns that name.

    A move that was interrupted is completed by the next call.

    Raises:
      TrainingError: a file cannot be moved.
    """
    target = unfinished_move(folder) or folder / f"{_next_name(folder)}{_MOVING}"
    try:
        target.mkdir(exist_ok=True)
        names = sorted(os.listdir(folder))  # glob of Python 3.11 leaves out dangling links
        for pattern in _FILES:
            for name in fnmatch.filter(names, pattern):
                os.rename(folder / name, target / name)
        for name in tokenizer_settings.file_names(folder):  # may be an input too
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy2(folder / name, target / name)
        sync_folder(target)
        done = target.with_name(target.name.removesuffix(_MOVING))
        os.rename(target, done)
        sync_folder(folder)
    except OSError as error:
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        raise TrainingError(
            f"the files of the earlier run cannot be moved: {error}.",
            str(folder),
            "use another --run_dir.",
        ) from error
    return done.name


def unfinished_move(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of a move that was interrupted."""
    return next(iter(sorted(folder.glob(f"before-*{_MOVING}"))), None)


def _next_name(folder: pathlib.Path) -> str:
    numbers = [
        int(match[1])
        for path in folder.glob("before-*")
        if (match := re.fullmatch(r"before-(\d+)", path.name))
    ]
    return f"before-{max(numbers, default=0) + 1}"
