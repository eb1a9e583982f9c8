"""The step folders of a run, by name: complete, unfinished and corrupted checkpoints."""

import pathlib
import re
import shutil

from qwen_jax.errors import CheckpointError


def numbered(folder: pathlib.Path) -> list[int]:
    """Returns the steps whose folder name is a number, in ascending order."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()
    )


def clear_unfinished(folder: pathlib.Path) -> None:
    """Deletes folders that a killed process was writing, replacing or deleting."""
    for path in folder.iterdir():
        if path.name.endswith(".replaced"):
            # Killed between two renames: the replaced folder may be the only copy.
            step = path.with_suffix("")
            if not step.exists():
                path.rename(step)
                continue
        if re.fullmatch(r"\d+\.(saving|deleting|replaced)", path.name):
            shutil.rmtree(path)


def set_aside(path: pathlib.Path) -> str:
    """Renames a corrupted step so it is no longer used; returns the new name."""
    for number in range(1000):
        target = path.with_name(f"{path.name}.corrupt" + (f"-{number}" if number else ""))
        if not target.exists():
            path.rename(target)
            return target.name
    raise CheckpointError(
        "1,000 corrupted copies of this step exist.", str(path), "delete some of them."
    )
