"""Models in an object store, for everything that reads one: a run folder, or a released folder.

A run's files, its newest checkpoint, or the files of a released model are copied to a local folder,
verified, and read there like any other.
"""

import hashlib
import os
import pathlib
import tempfile

import jax

from qwen_jax.checkpoint import manifest
from qwen_jax.checkpoint.bucket.steps import Damaged, Steps
from qwen_jax.errors import CheckpointError
from qwen_jax.parallel import distributed
from qwen_jax.utils import hub
from qwen_jax.utils.storage.mirror import CHECKPOINTS, Mirror
from qwen_jax.utils.storage.path import is_remote
from qwen_jax.utils.storage.store import Store, open_store

_STAGING = "QWEN_JAX_STAGING"  # as for runs (train/attempts/staged.py)


def local_folder(name: str | os.PathLike, *, where: str = "model") -> str:
    """Returns the local folder of a model: hub.local_folder, also for addresses in a store.

    Of a run in a store, the newest intact checkpoint is copied. In a run of several processes, all
    of them call it, and copy the same one.

    Raises:
      ConfigError: the store cannot be read.
      CheckpointError: there is no model at the address, or every checkpoint is damaged.
    """
    name = os.fspath(name)
    if not is_remote(name):
        return hub.local_folder(name, where=where)
    store = open_store(name.rstrip("/"), where=where)
    default = pathlib.Path(tempfile.gettempdir()) / f"qwen_jax-{os.getuid()}"
    root = pathlib.Path(os.environ.get(_STAGING) or default) / "models"
    digest = hashlib.sha256(str(store.root).encode()).hexdigest()[:16]
    folder = root / digest / f"process-{jax.process_index()}" / store.root.name
    mirror = Mirror(store, folder)
    mirror.pull()
    if not (folder / "config.json").is_file() and not (folder / hub.ADAPTER).is_file():
        raise CheckpointError(
            "there is no model at this address: config.json is missing.",
            f"{where}={name}",
            "pass the folder of a run or of a model.",
        )
    _copy_newest(store, folder / CHECKPOINTS)
    return str(folder)


def _copy_newest(store: Store, folder: pathlib.Path) -> None:
    """Copies the newest intact step, which process 0 chooses."""
    steps, bad = Steps(store.at(CHECKPOINTS)), []
    if jax.process_index() == 0 or not distributed.is_distributed():
        chosen = _first_intact(steps, folder, bad)
    else:
        chosen = None
    agreed = distributed.broadcast(str(chosen))
    if agreed == "None":
        if bad:
            raise CheckpointError(
                f"no valid checkpoint found. {'; '.join(bad)}.",
                str(steps.store.root),
                "restore the objects from a backup, or pass another run.",
            )
        return
    if chosen is None and (problems := _copy(steps, int(agreed), folder)):
        raise CheckpointError(
            f"step {agreed} is damaged: {'; '.join(problems)}.",
            str(steps.store.root),
            "run the command again.",
        )


def _first_intact(steps: Steps, folder: pathlib.Path, bad: list[str]) -> int | None:
    for step in steps.numbers()[::-1]:
        problems = _copy(steps, step, folder)
        if not problems:
            return step
        bad.append(f"step {step}: {'; '.join(problems)}")
    return None


def _copy(steps: Steps, step: int, folder: pathlib.Path) -> list[str]:
    """Copies and verifies a step; returns the damage found."""
    path = folder / str(step)
    try:
        files = steps.files(step)
    except Damaged as error:
        return [str(error)]
    (path / manifest.NAME).unlink(missing_ok=True)
    if problems := steps.download(step, files, path, files):
        return problems
    for extra in set(manifest.names(path)) - set(files):
        (path / extra).unlink()
    manifest.write(path)  # that of a folder, which readers verify again
    return []
