"""Trains on shuffled examples: shared by SFT, reward modeling and DPO."""

from collections.abc import Iterator
from typing import Any

import jax

from qwen_jax.data.batches import Batches, eval_batches, stack_trees
from qwen_jax.parallel.batch_rows import rows_here
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.train.supervised import train


def train_on_examples(examples, config, **train_arguments):
    """Calls train.supervised.train on shuffled batches of `examples`; returns the last TrainState.

    Args:
      examples: a sequence of trees of arrays, all with the shapes of examples.padding.
      train_arguments: additional arguments of train.supervised.train.
    """
    size = config.train.batch_size
    batches = Batches(
        examples,
        batch_size=size,
        seed=config.train.seed,
        collate=stack_trees,
        rows=_local_rows(config),
    )
    batch = abstract_examples(examples.padding, size)
    return train(config, batches=batches.iterate, batch=batch, **train_arguments)


def abstract_examples(example: Any, number: int) -> Any:
    """Returns the shapes and dtypes of a batch of `number` examples like `example`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape), x.dtype), example)


def held_out_batches(examples, config, max_batches: int | None = None) -> Iterator[Any]:
    """Yields this process's rows of the first `max_batches` batches of a fixed shuffled epoch.

    None: all batches.
    """
    limit = len(examples) if max_batches is None else max_batches
    return eval_batches(examples, config.train.batch_size, limit, rows=_local_rows(config))


def _local_rows(config) -> tuple[int, ...]:
    return rows_here(make_mesh(config.mesh), config.train.batch_size)
