"""What SFT, reward modeling and DPO have in common: training on rows that are read at random."""

from collections.abc import Iterator
from typing import Any

import jax

from qwen_jax.data.batches import Batches, eval_batches, stack_trees
from qwen_jax.parallel.batch_rows import rows_here
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.train.supervised import train


def train_on_examples(rows, config, **named):
    """train.supervised.train on shuffled batches of `rows`; returns the last TrainState.

    Args:
      rows: of trees of arrays, all of the shapes of rows.padding.
      named: the rest of train's arguments.
    """
    size = config.train.batch_size
    batches = Batches(
        rows, batch_size=size, seed=config.train.seed, collate=stack_trees, rows=_rows(config)
    )
    batch = abstract_examples(rows.padding, size)
    return train(config, batches=batches.iterate, batch=batch, **named)


def abstract_examples(row: Any, number: int) -> Any:
    """The shapes and dtypes of a batch of `number` rows like `row`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape), x.dtype), row)


def held_out_batches(rows, config, most: int | None = None) -> Iterator[Any]:
    """This process's part of the rows in order, once; of at most `most` batches."""
    return eval_batches(
        rows, config.train.batch_size, len(rows) if most is None else most, rows=_rows(config)
    )


def _rows(config) -> tuple[int, ...]:
    return rows_here(make_mesh(config.mesh), config.train.batch_size)
