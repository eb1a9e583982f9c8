"""The folders of a checkpoint by their names: whole steps, unfinished ones, damaged ones."""

import pathlib
import re
import shutil

from qwen_jax.errors import CheckpointError


def numbered(folder: pathlib.Path) -> list[int]:
    """The folders whose name is a number, in order."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()
    )


def clear_unfinished(folder: pathlib.Path) -> None:
    """Deletes what a killed process was writing, replacing or deleting."""
    for path in folder.iterdir():
        if path.name.endswith(".replaced"):
            # Killed between two renames: the older one is the only one there is.
            step = path.with_suffix("")
            if not step.exists():
                path.rename(step)
                continue
        if re.fullmatch(r"\d+\.(saving|deleting|replaced)", path.name):
            shutil.rmtree(path)


def set_aside(path: pathlib.Path) -> str:
    """Renames a damaged step, so that nothing takes it for one; the new name."""
    for number in range(1000):
        target = path.with_name(f"{path.name}.corrupt" + (f"-{number}" if number else ""))
        if not target.exists():
            path.rename(target)
            return target.name
    raise CheckpointError("a thousand damaged copies of one step.", str(path), "delete them.")
