"""Batches of anything that has rows: each a function of (seed, step), on any number of hosts."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import jax
import numpy as np

from qwen_jax.errors import DataError


class RowSource(Protocol):
    """Random access to a number of rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Any: ...


class Batches:
    """Shuffled anew in every epoch, without end, cut to batches and to this host's part of each.

    Example:
      >>> batches = Batches(rows, batch_size=128, seed=0, collate=np.stack)
      >>> with batches.iterate(start_step=1000) as stream:  # read ahead in a thread
      ...     batch = next(stream)
    """

    def __init__(self, source: RowSource | grain.MapDataset, *, batch_size: int, seed: int,
                 collate: Callable[[list], Any], shard: tuple[int, int] = (0, 1)):
        """
        Args:
          source: rows; or a dataset that is endless and shuffled already.
          batch_size: over all hosts.
          collate: a list of rows -> a batch.
          shard: (this host, number of hosts); it gets rows [i B / n, (i + 1) B / n) of each batch.
        """
        index, count = shard
        if batch_size % count:
            raise DataError(f"batch_size={batch_size} does not divide by {count} hosts.",
                            "train.batch_size", f"use a multiple of {count}.")
        if not isinstance(source, grain.MapDataset):
            source = shuffled(source, seed).repeat(None)
        local = batch_size // count
        mine = _HostRows(source, batch_size=batch_size, start=index * local, local=local)
        self._dataset = mine.batch(local, batch_fn=collate)

    def batch(self, step: int) -> Any:
        """This host's part of the batch of `step`."""
        return self._dataset[step]

    @contextlib.contextmanager
    def iterate(self, start_step: int) -> Iterator[Iterator[Any]]:
        """The batches from `start_step` on, without end; a thread reads a few ahead."""
        # One thread and a short buffer: a batch is one object, and more threads wait for the lock.
        dataset = self._dataset.to_iter_dataset(grain.ReadOptions(
            num_threads=1, prefetch_buffer_size=4))
        batches = iter(dataset)
        grain.experimental.set_next_index(batches, start_step)
        try:
            yield batches
        finally:
            batches.close()


def shuffled(source: RowSource, seed: int) -> grain.MapDataset:
    """One pass over `source` in an order that the seed and the epoch decide."""
    return grain.MapDataset.source(source).seed(seed).shuffle()


class _HostRows(grain.MapDataset):
    """This host's rows of every batch, one after the other."""

    def __init__(self, parent: grain.MapDataset, *, batch_size: int, start: int, local: int):
        super().__init__(parent)
        self._batch_size, self._start, self._local = batch_size, start, local

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._local

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        return self._parent[self._global(index)]

    def _getitems(self, indices):
        return self._parent._getitems([self._global(index) for index in indices])

    def _global(self, index: int) -> int:
        step, row = divmod(index, self._local)
        return step * self._batch_size + self._start + row


def eval_batches(source: RowSource, batch_size: int, num: int, *, shard: tuple[int, int] = (0, 1)
                 ) -> Iterator[Any]:
    """This host's part of the first `num` batches of one shuffled pass: always the same ones.

    The last one is filled up with source.padding, which has no weight.
    """
    index, count = shard
    local, rows = batch_size // count, shuffled(source, 0)
    for start in range(0, min(num * batch_size, len(source)), batch_size):
        mine = range(start + index * local, min(start + (index + 1) * local, len(source)))
        yield stack_trees(fill_up([rows[i] for i in mine], local, source.padding))


def fill_up(rows: list, size: int, padding) -> list:
    """`rows` with `padding` behind them up to `size`: the last batch of an evaluation."""
    return [*rows, *([padding] * (size - len(rows)))]


def stack_trees(rows: list) -> Any:
    """Rows that are equal trees of arrays -> one tree with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
