"""Batches of anything that has rows: each a function of (seed, step), on any number of hosts."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from qwen_jax import compat


class RowSource(Protocol):
    """Random access to a number of rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


class PaddedRows(RowSource, Protocol):
    """Rows, and one that has no weight."""

    @property
    def padding(self) -> Any: ...


class Batches:
    """Shuffled anew in every epoch, without end, cut to batches and to this host's part of each.

    Example:
      >>> batches = Batches(rows, batch_size=128, seed=0, collate=np.stack)
      >>> with batches.iterate(start_step=1000) as stream:  # read ahead in a thread
      ...     batch = next(stream)
    """

    def __init__(
        self,
        source: RowSource | grain.MapDataset,
        *,
        batch_size: int,
        seed: int,
        collate: Callable[[Sequence], Any],
        rows: Sequence[int] | None = None,
    ):
        """
        Args:
          source: rows; or a dataset that is endless and shuffled already.
          batch_size: over all hosts.
          collate: a list of rows -> a batch.
          rows: those of each batch that this host reads (parallel/batch_rows.py); None: all.
        """
        rows = range(batch_size) if rows is None else rows
        if not isinstance(source, grain.MapDataset):
            source = shuffled(source, seed).repeat(None)
        mine = _HostRows(source, batch_size=batch_size, rows=rows)
        self._dataset = mine.batch(len(rows), batch_fn=collate)

    def batch(self, step: int) -> Any:
        """This host's part of the batch of `step`."""
        return self._dataset[step]

    @contextlib.contextmanager
    def iterate(self, start_step: int) -> Iterator[Iterator[Any]]:
        """The batches from `start_step` on, without end; a thread reads a few ahead."""
        # One thread and a short buffer: a batch is one object, and more threads wait for the lock.
        dataset = self._dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        )
        batches = iter(dataset)
        grain.experimental.set_next_index(batches, start_step)
        try:
            yield batches
        finally:
            batches.close()


def shuffled(source: RowSource, seed: int) -> grain.MapDataset:
    """One pass over `source` in an order that the seed and the epoch decide."""
    # Grain's protocol names the index, which it never passes by name.
    rows = grain.MapDataset.source(source)  # pyright: ignore[reportArgumentType]
    return rows.seed(seed).shuffle()


class _HostRows(grain.MapDataset):
    """This host's rows of every batch, one after the other."""

    def __init__(self, parent: grain.MapDataset, *, batch_size: int, rows: Sequence[int]):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(compat.parent_of(self)) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        return compat.parent_of(self)[self._global(index)]

    def _getitems(self, indices):  # Grain's hook for reading several items in one call
        places = [self._global(index) for index in indices]
        return compat.batched_items(compat.parent_of(self), places)

    def _global(self, index: int) -> int:
        step, place = divmod(index, len(self._rows))
        return step * self._batch_size + self._rows[place]


def eval_batches(
    source: PaddedRows, batch_size: int, num: int, *, rows: Sequence[int] | None = None
) -> Iterator[Any]:
    """This host's part of the first `num` batches of one shuffled pass: always the same ones.

    The last one is filled up with source.padding, which has no weight.

    Args:
      rows: those of each batch that this host reads; None: all.
    """
    rows, order = range(batch_size) if rows is None else rows, shuffled(source, 0)
    for start in range(0, min(num * batch_size, len(source)), batch_size):
        yield stack_trees(
            [order[start + row] if start + row < len(source) else source.padding for row in rows]
        )


def pad_batch(rows: list, size: int, padding) -> list:
    """`rows` with `padding` behind them up to `size`: the last batch of an evaluation."""
    return [*rows, *([padding] * (size - len(rows)))]


def stack_trees(rows: Sequence) -> Any:
    """Rows that are equal trees of arrays -> one tree with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
