"""One writer per run folder in a store: the object lock.json, which its writer replaces regularly.

Each beat names the generation that it replaces, so a writer that was taken over cannot beat again.
Ages are differences of times on the store's clock. A writer on this machine that is dead is
replaced at once, as in utils/folder_lock.py.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator

from qwen_jax.errors import ConfigError, FolderInUseError, TrainingError, UnreadableError
from qwen_jax.utils.folder_lock import HEARTBEAT_SECONDS, NAME, STALE_SECONDS, Writer, beating
from qwen_jax.utils.storage.client import ABSENT
from qwen_jax.utils.storage.failures import Conflict, Missing
from qwen_jax.utils.storage.store import Store

_POLL_SECONDS = 2.0


class Heartbeat:
    """A lock that this process holds; the counterpart of folder_lock.Lock."""

    def __init__(self, store: Store, writer: Writer, generation: str):
        self._store, self._writer, self._generation = store, writer, generation
        self._beats, self._mutex = 0, threading.Lock()

    def check(self) -> None:
        """Raises TrainingError if another process has taken over, because this one was frozen."""
        with self._mutex:
            found = _read(self._store)
            if found is None:  # deleted by hand
                with contextlib.suppress(Conflict):
                    self._write(ABSENT)
                found = _read(self._store)
            if found != self._writer:
                raise TrainingError(
                    f"another process has taken over the folder: {found or 'unknown'}.",
                    str(self._store.root / NAME),
                    "let that process go on: this one was silent for too long (suspended, or the "
                    "store did not answer). It has not overwritten anything.",
                )

    def beat(self) -> None:
        """Moves the heartbeat, unless the lock is lost."""
        with self._mutex, contextlib.suppress(Conflict, UnreadableError, ConfigError):
            self._write(self._generation)

    def release(self) -> None:
        with self._mutex, contextlib.suppress(UnreadableError, ConfigError):
            if _read(self._store) == self._writer:
                self._store.delete(NAME)

    def _write(self, expect: str) -> None:
        self._beats += 1
        self._generation = self._store.write(
            NAME, _content(self._writer, self._beats), expect=expect
        )


@contextlib.contextmanager
def hold(
    store: Store,
    *,
    flag: str = "--run_dir",
    log: Callable[[str], None] = print,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    stale_seconds: float = STALE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Heartbeat]:
    """Holds the lock of a run folder during a `with` block, as folder_lock.hold does on a disk.

    Raises:
      FolderInUseError: another process writes to the folder; names its host, process and start.
    """
    lock = take(store, flag=flag, log=log, stale_seconds=stale_seconds, sleep=sleep)
    with beating(lock, heartbeat_seconds):
        yield lock


def take(
    store: Store,
    *,
    flag: str,
    log: Callable[[str], None],
    stale_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Heartbeat:
    """Takes the lock, without a heartbeat. Arguments and errors are as in `hold`."""
    writer, announced = Writer.this_process(), False
    first: tuple[str, float] | None = None  # generation seen first, and when
    while True:
        found, holder = store.stat(NAME), _read(store)
        if found is None:
            with contextlib.suppress(Conflict):
                return Heartbeat(store, writer, store.write(NAME, _content(writer, 0), expect=""))
            continue
        lives = None if holder is None else holder.lives()
        if lives or (first is not None and first[0] != found.generation):
            raise FolderInUseError(
                f"another process writes to this folder: {holder or 'unknown'}.",
                f"{flag}={store.root}",
                f"wait until it has ended, stop it, or use another {flag}.",
            )
        first = first or (found.generation, time.monotonic())
        age = store.check_writable(flag) - found.modified
        silent = max(age, time.monotonic() - first[1])  # also where the store's clock jumps
        if lives is False or silent >= stale_seconds:
            with contextlib.suppress(Conflict):
                generation = store.write(NAME, _content(writer, 0), expect=found.generation)
                log(f"took over the lock of {holder or 'an unknown process'}, which has ended")
                return Heartbeat(store, writer, generation)
            continue
        if not announced:
            log(
                f"waiting up to {stale_seconds:.0f} s for a heartbeat of "
                f"{holder or 'an unknown process'}, the last writer of {store.root}"
            )
            announced = True
        sleep(_POLL_SECONDS)


def _content(writer: Writer, beats: int) -> bytes:
    return json.dumps(dataclasses.asdict(writer) | {"beats": beats}, indent=1).encode() + b"\n"


def _read(store: Store) -> Writer | None:
    """Returns the writer in the lock; None if it is missing or damaged."""
    try:
        record = json.loads(store.read(NAME))
        return Writer(**{field.name: record[field.name] for field in dataclasses.fields(Writer)})
    except (Missing, ValueError, KeyError, TypeError):
        return None
