"""The local folder of a run: --run_dir itself, or the copy of a run folder in a store.

The code of a run reads and writes the local folder. For --run_dir=gs://BUCKET/RUN, that is a copy
in QWEN_JAX_STAGING (default: the folder for temporary files), which each process fills from the
store when it starts. Process 0 writes it back: at each checkpoint, every 20 s and at the end.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

import jax

from qwen_jax.checkpoint.bucket.checkpointer import BucketCheckpointer
from qwen_jax.checkpoint.bucket.steps import Steps
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.errors import ConfigError
from qwen_jax.utils import folder_lock
from qwen_jax.utils.files import naming_file
from qwen_jax.utils.storage import heartbeat
from qwen_jax.utils.storage.mirror import CHECKPOINTS, Mirror
from qwen_jax.utils.storage.path import is_remote
from qwen_jax.utils.storage.store import open_store

STAGING = "QWEN_JAX_STAGING"
_STEPS = "steps"  # of a staging folder: checkpoints of this process; the rest is in "run"
_MANY = 256  # processes of one computer with the same run folder
Lock = folder_lock.Lock | heartbeat.Heartbeat


class Staged:
    """A run folder in a store, and this process's copy of it.

    Raises:
      ConfigError: the store cannot be read or written.
    """

    def __init__(self, run_dir: str):
        store = open_store(run_dir, where="--run_dir")
        self.url, process = run_dir, jax.process_index()
        if process == 0:
            store.check_writable()
        self._home, self._held = _own_folder(run_dir)
        self.steps_folder = self._home / _STEPS
        self.mirror = Mirror(
            store,
            self._home / "run",
            # Every process writes traces; all else is process 0's.
            pushes=lambda name: process == 0 or name.startswith("profile/"),
        )
        self.steps = Steps(store.at(CHECKPOINTS))
        self.pull()

    def pull(self) -> None:
        """Makes the local folder equal to the store. An empty folder stands for each checkpoint."""
        self.mirror.pull()
        folder = self.mirror.folder / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        names = [str(step) for step in self.steps.numbers()]
        names += [f"{step}.corrupt" for step in self.steps.corrupt() if str(step) not in names]
        for path in folder.iterdir():
            if path.name not in names:
                path.rmdir()
        for name in names:
            (folder / name).mkdir(exist_ok=True)


@functools.cache
def _staged(run_dir: str) -> Staged:
    return Staged(run_dir)


def local(run_dir: str | os.PathLike) -> pathlib.Path:
    """Returns the local folder of a run; for one in a store, fills it at the first call."""
    run_dir = os.fspath(run_dir)
    return _staged(run_dir).mirror.folder if is_remote(run_dir) else pathlib.Path(run_dir)


def push(run_dir: str | os.PathLike) -> None:
    """Writes what has changed in the local folder to the store; nothing for a local run folder.

    Raises:
      ConfigError, UnreadableError: the store cannot be written.
    """
    run_dir = os.fspath(run_dir)
    if is_remote(run_dir):
        _staged(run_dir).mirror.push()


def move_aside(run_dir: str | os.PathLike, name: str) -> None:
    """Moves the objects of a run to before-N/ in its folder, after the local files have moved."""
    run_dir = os.fspath(run_dir)
    if is_remote(run_dir):
        staged = _staged(run_dir)
        staged.mirror.move_aside(name)
        staged.pull()


@contextlib.contextmanager
def only_writer(run_dir: str | os.PathLike, log: Callable[[str], None]) -> Iterator[Lock]:
    """Holds the lock of a run folder, and keeps the store up to date during the block.

    Raises:
      FolderInUseError: another process writes to the folder; names its host, process and start.
      OSError: the local folder cannot be written.
    """
    run_dir = os.fspath(run_dir)
    if not is_remote(run_dir):
        with folder_lock.hold(run_dir, log=log) as lock:
            yield lock
        return
    staged = _staged(run_dir)
    with heartbeat.hold(staged.mirror.store, log=log) as lock:
        staged.pull()  # another process may have written before this one had the lock
        with staged.mirror.pushing(log):
            yield lock


def checkpointer(
    run_dir: str | os.PathLike, *, keep: int, log: Callable[..., None]
) -> Checkpointer | BucketCheckpointer:
    """Returns the checkpoints of a run."""
    run_dir = os.fspath(run_dir)
    if not is_remote(run_dir):
        return Checkpointer(pathlib.Path(run_dir) / CHECKPOINTS, keep=keep, log=log)
    staged = _staged(run_dir)
    return BucketCheckpointer(
        staged.steps.store,
        staged.steps_folder,
        keep=keep,
        log=log,
        # The log of metrics is in the store before the checkpoint that a restart goes on from.
        before_commit=staged.mirror.push,
    )


def _own_folder(run_dir: str) -> tuple[pathlib.Path, BinaryIO]:
    """Returns a local folder that no other process uses, and the file that keeps it locked.

    A process that starts again finds the folder, with the checkpoints in it.
    """
    default = pathlib.Path(tempfile.gettempdir()) / f"qwen_jax-{os.getuid()}"
    root = pathlib.Path(os.environ.get(STAGING) or default)
    home = root / hashlib.sha256(run_dir.encode()).hexdigest()[:16]
    try:
        for copy in range(_MANY):
            folder = home / f"process-{jax.process_index()}{f'.{copy}' if copy else ''}"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(1, "the folder belongs to another user", str(folder))
            with naming_file(folder / "lock"):
                held = open(folder / "lock", "ab")
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return folder, held
                except BlockingIOError:
                    held.close()
    except OSError as error:
        raise ConfigError(
            f"the local copy of the run folder cannot be written: {error}.",
            str(root),
            f"set {STAGING} to a folder on a disk of this computer.",
        ) from error
    raise ConfigError(
        f"{_MANY} processes use this run folder.", str(home), "stop them, or use another --run_dir."
    )
