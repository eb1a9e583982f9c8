"""All processes of a run hash the files of a step together: each reads its share of the bytes.

Process 0 hands out shares through JAX's key-value store, and the others serve until it is done. A
share that a process cannot hash, because it does not see the files, process 0 hashes itself.
"""

import concurrent.futures
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from qwen_jax import compat
from qwen_jax.parallel import distributed

_THREADS = 16
_SECONDS = 3600  # for a share; a process that dies is noticed earlier, by its heartbeat
Entry = dict[str, int | str]
Hash = Callable[[pathlib.Path], Entry]  # raises OSError


class HashTogether:
    """One round of hashing. Every process of the run creates it with the same topic.

    Args:
      topic: unique in the run.
      hash_file: returns the entry of a file in a manifest.
    """

    def __init__(self, topic: str, hash_file: Hash):
        self._topic, self._hash, self._items = f"hash/{topic}", hash_file, itertools.count()
        self._workers = range(1, jax.process_count() if distributed.is_distributed() else 1)

    def entries(self, folder: pathlib.Path, sizes: dict[str, int]) -> dict[str, Entry]:
        """Returns the entries of the files that could be hashed; process 0 calls it.

        It has none if this is the only process.

        Args:
          sizes: name of each file below `folder` -> its bytes.
        """
        if not self._workers:
            return {}
        shares = _shares(sizes, 1 + len(self._workers))
        item = next(self._items)
        client = compat.coordination_client()
        for worker in self._workers:
            text = json.dumps({"folder": str(folder), "names": shares[worker]})
            client.key_value_set(f"{self._topic}/{item}/share/{worker}", text)
        found = self._hash_all(folder, shares[0])
        for worker in self._workers:
            found |= json.loads(_get(f"{self._topic}/{item}/done/{worker}") or "{}")
            for kind in ("share", "done"):  # a run saves thousands of times
                client.key_value_delete(f"{self._topic}/{item}/{kind}/{worker}")
        return found

    def finish(self) -> None:
        """Ends the `serve` of the other processes; process 0 calls it."""
        item = next(self._items)
        for worker in self._workers:
            compat.coordination_client().key_value_set(f"{self._topic}/{item}/share/{worker}", "{}")

    def serve(self) -> None:
        """Hashes shares until process 0 is done; the other processes call it."""
        process = jax.process_index()
        for item in self._items:
            share: dict[str, Any] = json.loads(
                _get(f"{self._topic}/{item}/share/{process}") or "{}"
            )
            if not share:
                return
            found = self._hash_all(pathlib.Path(share["folder"]), share["names"])
            compat.coordination_client().key_value_set(
                f"{self._topic}/{item}/done/{process}", json.dumps(found)
            )

    def _hash_all(self, folder: pathlib.Path, names: list[str]) -> dict[str, Entry]:
        def one(name: str) -> tuple[str, Entry | None]:
            try:
                return name, self._hash(folder / name)
            except OSError:  # process 0 tries again, and says what is wrong
                return name, None

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            return {name: entry for name, entry in pool.map(one, names) if entry is not None}


def _get(key: str) -> str | None:
    try:
        return compat.coordination_client().blocking_key_value_get(key, _SECONDS * 1000)
    except jax.errors.JaxRuntimeError as error:
        logging.warning("%s: %s", key, str(error).splitlines()[0])
        return None


def _shares(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Splits files into shares of about equal bytes: each next largest goes to the smallest."""
    shares: list[list[str]] = [[] for _ in range(count)]
    total = [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = total.index(min(total))
        shares[smallest].append(name)
        total[smallest] += sizes[name]
    return shares
