"""A run folder in a store, and its copy on a local disk that the code of a run reads and writes.

`pull` makes the local folder equal to the store. `push` writes what has changed: logs (*.jsonl) as
segments, other files whole. The store is what counts: a host that is lost loses only what was not
pushed. Checkpoints have their own way (checkpoint/bucket).
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

from qwen_jax.errors import ConfigError, UnreadableError
from qwen_jax.utils.best_effort import reason_of
from qwen_jax.utils.files import WRITING, files_in
from qwen_jax.utils.folder_lock import NAME as LOCK
from qwen_jax.utils.storage.segments import SUFFIX, Segments
from qwen_jax.utils.storage.store import Store

CHECKPOINTS = "checkpoints"
_THREADS = 16
_PUSH_SECONDS = 20.0
_LOG = ".jsonl"


class Mirror:
    """A folder in a store and its local copy. One process at a time pushes.

    Args:
      pushes: whether a path below the folder is this process's to push.
    """

    def __init__(
        self,
        store: Store,
        folder: pathlib.Path,
        *,
        pushes: Callable[[str], bool] = lambda name: True,
    ):
        self.store, self.folder, self._pushes = store, folder, pushes
        self._logs: dict[str, Segments] = {}
        self._known: dict[str, tuple[int, int, int]] = {}  # state of each file that was pushed
        self._lock = threading.Lock()
        self._warned = False

    def pull(self) -> None:
        """Makes the local folder equal to the store, except checkpoints.

        Raises:
          ConfigError, UnreadableError, DataError: the store cannot be read, or lacks a segment.
        """
        with self._lock:
            keys = [each.key for each in self.store.list()]
            mirrored = [key for key in keys if _is_mirrored(key)]
            logs = {key.partition(SUFFIX + "/")[0] for key in mirrored if SUFFIX + "/" in key}
            whole = [key for key in mirrored if SUFFIX + "/" not in key]
            self._clear()
            for name in {key.partition("/")[0] for key in keys if key.startswith("before-")}:
                (self.folder / name).mkdir(exist_ok=True)  # the next restart takes another number
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(self._download, whole))
            for name in logs:
                self._logs[name] = Segments(self.store, name)
                (self.folder / name).write_bytes(self._logs[name].read())

    def push(self) -> None:
        """Writes what has changed since the last push or pull; deletes what is gone.

        Raises:
          ConfigError, UnreadableError: the store cannot be written.
        """
        with self._lock:
            present = self._present()
            logs = [name for name in present if _is_log(name)]
            for name in logs:
                content = (self.folder / name).read_bytes()
                whole = content[: content.rfind(b"\n") + 1]  # without a line that is being written
                self._logs.setdefault(name, Segments(self.store, name)).write(whole)
            changed = [
                name
                for name, state in present.items()
                if not _is_log(name) and self._known.get(name) != state
            ]
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(self._upload, changed))
            self._known.update({name: present[name] for name in changed})
            for name in [name for name in self._known if name not in present]:
                self.store.delete(name)
                del self._known[name]
            for name in [name for name in self._logs if name not in present]:
                for each in self.store.list(f"{name}{SUFFIX}/"):
                    self.store.delete(each.key)
                del self._logs[name]

    def move_aside(self, name: str) -> None:
        """Moves everything to `name`/ in the store. Objects are copied before any is deleted."""
        with self._lock:
            keys = [each.key for each in self.store.list() if _moves(each.key)]
            keys.sort(key=lambda key: key == "config.json")  # says that the run exists: last
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda key: self.store.copy(key, f"{name}/{key}"), keys))
            for key in keys:
                self.store.delete(key)

    def try_push(self, log: Callable[[str], None]) -> None:
        """Like `push`, but warns if the store cannot be written: the next push has it all."""
        try:
            self.push()
            self._warned = False
        except (ConfigError, UnreadableError, OSError) as error:
            if not self._warned:
                log(f"warning: {self.store.root} is not up to date: {reason_of(error)}")
            self._warned = True

    @contextlib.contextmanager
    def pushing(self, log: Callable[[str], None]) -> Iterator[None]:
        """Pushes every 20 s in a thread during the block, and at its end."""
        stop = threading.Event()

        def pushes() -> None:
            while not stop.wait(_PUSH_SECONDS):
                self.try_push(log)

        thread = threading.Thread(target=pushes, name="push", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.try_push(log)

    def _present(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in files_in(self.folder):
            name = path.relative_to(self.folder).as_posix()
            if _is_mirrored(name) and not name.endswith(WRITING) and self._pushes(name):
                with contextlib.suppress(FileNotFoundError):
                    found[name] = _state(path)
        return found

    def _download(self, key: str) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        self.store.download(key, path)
        if self._pushes(key):
            self._known[key] = _state(path)

    def _upload(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile: the next push
            self.store.upload(self.folder / name, name)

    def _clear(self) -> None:
        self._known.clear()
        self._logs.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name == CHECKPOINTS:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_log(name: str) -> bool:
    return "/" not in name and name.endswith(_LOG)


def _is_mirrored(name: str) -> bool:
    top = name.partition("/")[0]
    return not (top.startswith((".", "before-")) or name == LOCK or top == CHECKPOINTS)


def _moves(key: str) -> bool:
    return key != LOCK and not key.startswith((".", "before-"))


def _state(path: pathlib.Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino
