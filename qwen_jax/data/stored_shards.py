"""Token shards in an object store: read by ranges, through a bounded cache on a local disk.

A source of less than 1 GiB is copied and its hashes are compared, as those on a disk. Of a larger
one, only the blocks are read that a sequence lies in, many at a time, and kept in a file of at most
QWEN_JAX_CACHE_GIB (16 per source and process). The cache ends with the process.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterable

import numpy as np

from qwen_jax.data.shard_manifest import MANIFEST
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.files import disk_full, put_in_place, temporary_path
from qwen_jax.utils.storage.failures import Missing
from qwen_jax.utils.storage.path import StoragePath
from qwen_jax.utils.storage.store import Store, open_store

CACHE_GIB = "QWEN_JAX_CACHE_GIB"
_STAGING = "QWEN_JAX_STAGING"  # as for runs (train/attempts/staged.py)
_THREADS = 32
_LARGE_BLOCK, _SMALL_BLOCK = 1 << 20, 1 << 16  # bytes: if the source fits in the cache, or not


def local_copy(url: str) -> pathlib.Path:
    """Returns a local folder with the manifest of the shards at `url`, and their tokenizer.

    The folder has the names of the last two parts of the address, like the shards on a disk: the
    tokenizer lies in its parent.

    Raises:
      DataError: there is no manifest.
    """
    path = StoragePath.parse(url.rstrip("/"), "data.sources")
    store = open_store(path.parent, where="data.sources")
    home = _home(path.parent)
    folder = home / path.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _download(store, f"{path.name}/{MANIFEST}", folder / MANIFEST)
    except Missing:
        raise DataError(
            "there are no token shards at this address: manifest.json is missing.",
            url,
            "check it; upload the folder that `python -m experiments.prepare_data` has written.",
        ) from None
    for each in store.list():
        if "/" not in each.key and each.bytes < 1 << 28:
            _download(store, each.key, home / each.key)
    return folder


def copy_files(url: str, folder: pathlib.Path, entries: Iterable[dict]) -> None:
    """Copies the files of a manifest to a folder, except those that are there with their hash."""
    store = open_store(url.rstrip("/"), where="data.sources")

    def copy(entry: dict) -> None:
        path = folder / entry["file"]
        if not path.is_file() or _sha256(path) != entry["sha256"]:
            with contextlib.suppress(Missing):  # the check of the folder finds it
                _download(store, entry["file"], path)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(copy, entries))


def sizes(url: str) -> dict[str, int]:
    """Returns the bytes of each object directly under an address."""
    return {each.key: each.bytes for each in open_store(url.rstrip("/")).list()}


class StoredTokens:
    """The files of a source as arrays of tokens, which read what they lack from the store.

    Args:
      files: (name, tokens) of each file.
      limit: bytes of the cache; None: QWEN_JAX_CACHE_GIB.

    Raises:
      ConfigError, DiskFullError: the cache cannot be created.
    """

    def __init__(
        self, url: str, files: list[tuple[str, int]], dtype: np.dtype, *, limit: int | None = None
    ):
        self._store, self._dtype = open_store(url.rstrip("/"), where="data.sources"), dtype
        self._files = files
        limit = _limit() if limit is None else limit
        total = sum(tokens * dtype.itemsize for _, tokens in files)
        self.block = _LARGE_BLOCK if total + len(files) * _LARGE_BLOCK <= limit else _SMALL_BLOCK
        blocks = sum(-(-tokens * dtype.itemsize // self.block) for _, tokens in files)
        slots = max(1, min(blocks, limit // self.block))
        self._cache = _slots(slots, self.block)
        self._free = list(range(slots))
        self._slot_of: collections.OrderedDict[tuple[int, int], int] = collections.OrderedDict()
        self._lock = threading.RLock()
        self._pool = concurrent.futures.ThreadPoolExecutor(_THREADS, "shards")

    def read(self, file: int, start: int, stop: int) -> np.ndarray:
        """Returns a copy of tokens start .. stop of a file; beyond its end, fewer."""
        size, last = self._dtype.itemsize, self._files[file][1]
        start, stop = min(start, last) * size, min(stop, last) * size
        parts = []
        with self._lock:
            for number in range(start // self.block, -(-stop // self.block)):
                block, base = self._block(file, number), number * self.block
                parts.append(block[max(start - base, 0) : stop - base].copy())
        found = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        return found.view(self._dtype)

    def fetch(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Reads the blocks of (file, start, stop) ranges of tokens from the store, in parallel."""
        size = self._dtype.itemsize
        with self._lock:
            wanted = {
                (file, number)
                for file, start, stop in ranges
                for number in range(start * size // self.block, -(-stop * size // self.block))
                if number * self.block < self._files[file][1] * size
            }
            missing = sorted(wanted - self._slot_of.keys())[: len(self._cache)]
            for key in wanted & self._slot_of.keys():
                self._slot_of.move_to_end(key)
            for key, content in zip(missing, self._pool.map(self._load, missing), strict=True):
                self._keep(key, content)

    def _block(self, file: int, number: int) -> np.ndarray:
        key = file, number
        if key not in self._slot_of:
            self._keep(key, self._load(key))
        self._slot_of.move_to_end(key)
        return self._cache[self._slot_of[key]]

    def _load(self, key: tuple[int, int]) -> bytes:
        file, number = key
        name, tokens = self._files[file]
        start = number * self.block
        stop = min(start + self.block, tokens * self._dtype.itemsize)
        try:
            content = self._store.read_range(name, start, stop)
        except Missing:
            content = b""
        if len(content) != stop - start:
            raise DataError(
                f"{name} ends at byte {start + len(content):,}, before {stop:,}.",
                str(self._store.root),
                "the object was replaced or deleted while the run reads it: restore it.",
            )
        return content

    def _keep(self, key: tuple[int, int], content: bytes) -> None:
        slot = self._free.pop() if self._free else self._slot_of.popitem(last=False)[1]
        self._cache[slot, : len(content)] = np.frombuffer(content, np.uint8)
        self._slot_of[key] = slot


def _slots(number: int, block: int) -> np.ndarray:
    """Returns [number, block] bytes in an unnamed file, which ends with this process."""
    try:
        with tempfile.TemporaryFile(dir=_root()) as file:
            # All of it now: a full disk would otherwise end the process with a bus error.
            os.posix_fallocate(file.fileno(), 0, number * block)
            return np.asarray(np.memmap(file, np.uint8, "r+", shape=(number, block)))
    except OSError as error:
        error.filename = str(_root())
        raise disk_full(error, needed=number * block) from error


def _limit() -> int:
    text = os.environ.get(CACHE_GIB, "16")
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 1e6:
        raise ConfigError(f"{text[:40]!r} is not a size.", CACHE_GIB, "use GiB, such as 16.")
    return int(gib * (1 << 30))


def _root() -> pathlib.Path:
    default = pathlib.Path(tempfile.gettempdir()) / f"qwen_jax-{os.getuid()}"
    root = pathlib.Path(os.environ.get(_STAGING) or default) / "shards"
    root.mkdir(parents=True, exist_ok=True)
    return root


def _home(path: StoragePath) -> pathlib.Path:
    return _root() / hashlib.sha256(str(path).encode()).hexdigest()[:16] / path.name


def _download(store: Store, key: str, path: pathlib.Path) -> None:
    temporary = temporary_path(path)  # several processes may copy it at once
    try:
        store.download(key, temporary)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
