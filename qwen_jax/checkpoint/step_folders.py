"""The step folders of a run, by name: complete, unfinished and corrupted checkpoints."""

import errno
import os
import pathlib
import re
import secrets
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
        if re.fullmatch(r"\d+\.(saving|deleting|replaced)|\.probe-.*", path.name):
            shutil.rmtree(path)


def check_renames(folder: pathlib.Path) -> None:
    """Checks that a folder with a file can be renamed, which makes a step complete.

    Raises:
      CheckpointError: it cannot, as on a mounted bucket.
      OSError: the folder cannot be written.
    """
    probe = folder / f".probe-{secrets.token_hex(8)}"
    renamed = probe.with_name(f"{probe.name}-renamed")
    probe.mkdir()
    try:
        (probe / "file").write_bytes(b"probe")
        probe.rename(renamed)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"folders cannot be renamed here: {error.strerror or error}. Is it a mounted bucket?",
            str(folder),
            f"use --run_dir=flat://{folder.parent}, or the bucket's address, such as gs://BUCKET/"
            "RUN (docs/guides/storage.md).",
        ) from error
    finally:
        for path in (probe, renamed):
            shutil.rmtree(path, ignore_errors=True)


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
