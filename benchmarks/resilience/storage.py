"""Time to save and restore a checkpoint, and tokens/s of the loader, on a disk and on stores.

    python -m benchmarks.resilience.storage --stores=/tmp/a,s3://BUCKET/a --gb=1

Each store is an empty local folder or an address (docs/guides/storage.md). A save is timed to its
commit, with its hashes; a restore begins with an empty local copy and verifies every file. The
loader's source is read twice: cold, and from the cache.
"""

import dataclasses
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.common.timing import machine
from qwen_jax.checkpoint.bucket.checkpointer import BucketCheckpointer
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.data.stored_shards import StoredTokens
from qwen_jax.ranges import Range
from qwen_jax.utils.storage.path import is_remote
from qwen_jax.utils.storage.store import open_store

_ARRAYS = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    stores: tuple[str, ...] = option((), "empty folders or addresses of stores", kind="stored")
    gb: float = option(1.0, "size of the state, and of the loader's source, in GB", Range(0.001))
    repeats: int = option(3, "saves and restores of each store; the fastest counts", Range(1))
    sequences: int = option(2000, "sequences of 2,048 tokens that the loader reads", Range(1))


def main(config: Config) -> None:
    print(machine())
    print(f"{'store':40} {'save s':>8} {'restore s':>10} {'cold tok/s':>12} {'warm tok/s':>12}")
    for store in config.stores:
        with tempfile.TemporaryDirectory() as home:
            save, restore = _checkpoints(store, config, pathlib.Path(home))
            cold, warm = _loader(store, config, pathlib.Path(home))
        print(f"{store:40} {save:8.2f} {restore:10.2f} {cold:12,.0f} {warm:12,.0f}", flush=True)


def _checkpoints(store: str, config: Config, home: pathlib.Path) -> tuple[float, float]:
    """Returns the seconds of a save and of a restore."""
    size = max(1, round(config.gb * 1e9 / 4 / _ARRAYS))
    rng = np.random.default_rng(0)
    state = {f"w{i}": jax.device_put(rng.random(size, np.float32)) for i in range(_ARRAYS)}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)

    def opened(host: int) -> Any:
        if is_remote(store):
            return BucketCheckpointer(open_store(store).at("steps"), home / f"host{host}", keep=1)
        return Checkpointer(pathlib.Path(store) / "steps", keep=1)

    saves, restores = [], []
    for number in range(config.repeats):
        saves.append(_seconds(lambda number=number: _save(opened(0), number, state)))
        restores.append(_seconds(lambda number=number: opened(number + 1).restore(abstract)))
        shutil.rmtree(home / f"host{number + 1}", ignore_errors=True)
    return min(saves), min(restores)


def _save(checkpoints: Any, step: int, state: Any) -> None:
    checkpoints.save(step, state, {})
    checkpoints.close()


def _loader(store: str, config: Config, home: pathlib.Path) -> tuple[float, float]:
    """Returns tokens/s of random sequences, read for the first and for the second time."""
    length, name, dtype = 2048, "tokens-00000.bin", np.dtype("<u4")
    tokens = max(config.sequences * length, round(config.gb * 1e9 / dtype.itemsize))
    file = home / name
    np.arange(tokens, dtype=dtype).tofile(file)
    rng = np.random.default_rng(0)
    order = rng.permutation(tokens // length)[: config.sequences] * length
    if is_remote(store):
        open_store(store).upload(file, name)
        stored = StoredTokens(store, [(name, tokens)], dtype)

        def read(start: int) -> np.ndarray:
            return stored.read(0, start, start + length)

        ahead: Callable[[np.ndarray], object] = lambda part: stored.fetch(  # noqa: E731
            (0, int(start), int(start) + length) for start in part
        )
    else:
        mapped = np.asarray(np.memmap(file, dtype, "r"))

        def read(start: int) -> np.ndarray:
            return mapped[start : start + length].astype(np.int32)

        ahead = len

    def epoch() -> None:
        for part in np.array_split(order, max(1, len(order) // 64)):  # batches of 64
            ahead(part)
            for start in part:
                assert read(int(start))[0] == start
        return None

    return tuple(len(order) * length / _seconds(epoch) for _ in range(2))  # pyright: ignore


def _seconds(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
