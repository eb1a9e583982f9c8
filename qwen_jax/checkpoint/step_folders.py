"""The step folders of a run, by name: complete, unfinished and corrupted checkpoints."""

import os
import pathlib
import re
import shutil

from qwen_jax.checkpoint.unreadable import exists, unreadable
from qwen_jax.errors import CheckpointError


def numbered(folder: pathlib.Path) -> list[int]:
    """Returns the steps whose folder name is a number, in ascending order.

    Raises:
      CheckpointError: the folder exists but cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(int(each.name) for each in found if _is_step(each))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def _is_step(entry: os.DirEntry) -> bool:
    # Not "007", which is not the folder of step 7.
    return re.fullmatch(r"0|[1-9][0-9]*", entry.name) is not None and entry.is_dir()


def clear_unfinished(folder: pathlib.Path) -> None:
    """Deletes folders that a killed process was writing, replacing or deleting."""
    for path in folder.iterdir():
        if path.name.endswith(".replaced"):
            # Killed between two renames: the replaced folder may be the only copy.
            step = path.with_suffix("")
            if not exists(step):
                path.rename(step)
                continue
        if re.fullmatch(r"\d+\.(saving|deleting|replaced)", path.name):
            shutil.rmtree(path)


def set_aside(path: pathlib.Path) -> str:
    """Renames a corrupted step so it is no longer used; returns the new name."""
    for number in range(1000):
        target = path.with_name(f"{path.name}.corrupt" + (f"-{number}" if number else ""))
        if not exists(target):
            path.rename(target)
            return target.name
    raise CheckpointError(
        "1,000 corrupted copies of this step exist.", str(path), "delete some of them."
    )
