"""Trains on shuffled examples: shared by SFT, reward modeling and DPO."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from qwen_jax.data.batches import Batches, eval_batches, stack_trees
from qwen_jax.errors import ConfigError
from qwen_jax.parallel.batch_rows import rows_here
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.train.optimizer import default_warmup
from qwen_jax.train.supervised import train

_MANY_EPOCHS = 10  # fine-tuning takes 1 to 3


def train_on_examples(examples, config, *, log: Callable[[str], None] = print, **train_arguments):
    """Calls train.supervised.train on shuffled batches of `examples`; returns the last TrainState.

    Args:
      examples: a sequence of trees of arrays, all with the shapes of examples.padding.
      log: also receives a warning if the number of epochs is far above what is usual.
      train_arguments: additional arguments of train.supervised.train.
    """
    size = config.train.batch_size
    epochs = size * config.train.num_steps / len(examples)
    if epochs > _MANY_EPOCHS:
        log(
            f"warning: {epochs:,.1f} epochs. 1 to 3 are usual; a model that sees its examples more "
            f"than {_MANY_EPOCHS} times mostly memorizes them. Set --data.epochs."
        )
    batches = Batches(
        examples,
        batch_size=size,
        seed=config.train.seed,
        collate=stack_trees,
        rows=_local_rows(config),
    )
    batch = abstract_examples(examples.padding, size)
    return train(config, batches=batches.iterate, batch=batch, log=log, **train_arguments)


def for_epochs(config: Any, pairs: int, log: Callable[[str], None] = print) -> Any:
    """Returns the config with num_steps set so that training runs for data.epochs.

    A warm-up that is not shorter than that becomes a tenth of it: the one of a recipe is for as
    much data as the recipe had.

    Raises:
      ConfigError: neither data.epochs nor train.num_steps is set.
    """
    epochs, train = config.data.epochs, config.train
    if epochs is None and train.num_steps is None:
        raise ConfigError(
            "neither the number of epochs nor the number of steps is set.",
            "--data.epochs, --train.num_steps",
            "set one of them.",
        )
    if epochs is None:
        return config
    if train.num_steps is not None:
        log(f"data.epochs={epochs:g} overrides train.num_steps={train.num_steps}")
    steps = max(1, round(epochs * pairs / train.batch_size))
    optimizer = config.optimizer
    if optimizer.warmup_steps >= steps:
        shorter = default_warmup(steps)
        log(
            f"optimizer.warmup_steps={optimizer.warmup_steps} becomes {shorter}, a tenth of the "
            f"{steps:,} steps of data.epochs={epochs:g}"
        )
        optimizer = dataclasses.replace(optimizer, warmup_steps=shorter)
    train = dataclasses.replace(train, num_steps=steps)
    return dataclasses.replace(config, train=train, optimizer=optimizer)


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
