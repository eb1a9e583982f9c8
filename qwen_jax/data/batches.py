"""Batches of any indexable source: each is a function of (seed, step) for any number of hosts."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from qwen_jax import compat


class ExampleSource(Protocol):
    """Random access to a fixed number of examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class PaddedSource(ExampleSource, Protocol):
    """An ExampleSource with a padding example, whose loss weights are 0."""

    @property
    def padding(self) -> Any: ...


class Batches:
    """Infinite batches, reshuffled every epoch; each host reads only its rows of a batch.

    Example:
      >>> batches = Batches(examples, batch_size=128, seed=0, collate=np.stack)
      >>> with batches.iterate(start_step=1000) as stream:  # prefetches in a thread
      ...     batch = next(stream)
    """

    def __init__(
        self,
        source: ExampleSource | grain.MapDataset,
        *,
        batch_size: int,
        seed: int,
        collate: Callable[[Sequence], Any],
        rows: Sequence[int] | None = None,
    ):
        """
        Args:
          source: the examples, or a Grain dataset that is already shuffled and infinite.
          batch_size: rows in a batch over all hosts.
          seed: random seed of the shuffling.
          collate: stacks a list of examples into a batch.
          rows: rows of each batch that this host reads (parallel/batch_rows.py); None: all.
        """
        rows = range(batch_size) if rows is None else rows
        if not isinstance(source, grain.MapDataset):
            source = shuffled(source, seed).repeat(None)
        self._dataset = _HostBatches(source, batch_size=batch_size, rows=rows, collate=collate)

    def batch(self, step: int) -> Any:
        """Returns this host's rows of the batch of `step`."""
        return self._dataset[step]

    @contextlib.contextmanager
    def iterate(self, start_step: int) -> Iterator[Iterator[Any]]:
        """Yields an infinite iterator that starts at `start_step`; a thread prefetches batches."""
        # One thread and a short buffer: a batch is one object, and more threads only contend for
        # the lock.
        dataset = self._dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        )
        batches = iter(dataset)
        grain.experimental.set_next_index(batches, start_step)
        try:
            yield batches
        finally:
            batches.close()


def shuffled(source: ExampleSource, seed: int) -> grain.MapDataset:
    """Returns one epoch of `source`, shuffled by the seed and the epoch."""
    # Grain's protocol names the index argument but always passes it by position.
    dataset = grain.MapDataset.source(source)  # pyright: ignore[reportArgumentType]
    return dataset.seed(seed).shuffle()


class _HostBatches(grain.MapDataset):
    """The rows of every batch that this host reads, stacked.

    Grain's own batch() computes the number of batches in floating point. For an endless dataset in
    batches of one row, the result is more than an integer can hold.
    """

    def __init__(
        self,
        parent: grain.MapDataset,
        *,
        batch_size: int,
        rows: Sequence[int],
        collate: Callable[[Sequence], Any],
    ):
        super().__init__(parent)
        self._batch_size, self._rows, self._collate = batch_size, rows, collate

    def __len__(self) -> int:
        return len(compat.parent_of(self)) // self._batch_size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        indices = [index * self._batch_size + row for row in self._rows]
        return self._collate(compat.batched_items(compat.parent_of(self), indices))


def eval_batches(
    source: PaddedSource, batch_size: int, num: int, *, rows: Sequence[int] | None = None
) -> Iterator[Any]:
    """Yields this host's rows of the first `num` batches of one shuffled epoch.

    The batches are the same in every call. The last one is padded with source.padding, whose loss
    weights are 0.

    Args:
      rows: rows of each batch that this host reads; None: all.
    """
    rows, order = range(batch_size) if rows is None else rows, shuffled(source, 0)
    for start in range(0, min(num * batch_size, len(source)), batch_size):
        yield stack_trees(
            [order[start + row] if start + row < len(source) else source.padding for row in rows]
        )


def pad_batch(examples: list, size: int, padding) -> list:
    """Appends `padding` to `examples` up to `size`, for the last batch of an evaluation."""
    return [*examples, *([padding] * (size - len(examples)))]


def stack_trees(trees: Sequence) -> Any:
    """Stacks pytrees of one structure along a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
