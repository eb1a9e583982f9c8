"""Reads only the parameters of a checkpoint, in chunks of a few megabytes.

Orbax's own reader would load full shards and an entire array at once.
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qwen_jax.checkpoint import arrays, description, newest_good
from qwen_jax.checkpoint.plain_path import PlainPath
from qwen_jax.errors import CheckpointError
from qwen_jax.utils import tree as leaves

Chunk = tuple[tuple[slice, ...], np.ndarray]


def open_params(
    folder: str | os.PathLike,
    abstract_params: Any,
    *,
    step: int | None = None,
    under: str = "params",
) -> tuple[int, Callable[[str, tuple[slice, ...]], Iterator[Chunk]]]:
    """Opens the parameters of the latest valid step, to read them in chunks.

    It only reads, so it is safe while a run is writing to the folder. The run keeps the step until
    the returned function is garbage collected. On file systems without locks, it may delete it;
    reading then fails.

    Args:
      abstract_params: abstract parameters of the saved state; see Checkpointer.restore.
      step: step to open; None: the latest valid one.
      under: path of the parameters in the state, such as "policy.params".

    Returns:
      The step, and a function (name, index) -> chunks of the parameter `name` (such as
      "layers.mlp.w_up") within the bounds `index`. Each chunk comes with its index in
      array[index]. It is at most as large as a chunk of the file (a few megabytes), regardless of
      how the array was sharded.

    Raises:
      CheckpointError: as in Checkpointer.restore, or there is no checkpoint. The returned function:
        the step was deleted or replaced, or cannot be read.
    """
    folder = pathlib.Path(folder).absolute()
    chosen = newest_good.choose(folder, step, set_aside=False)
    if chosen is None:
        raise CheckpointError(
            "no checkpoint found.",
            str(folder),
            "pass the `checkpoints` folder of a run that has saved a checkpoint.",
        )
    found, lock = chosen
    path, plain = folder / str(found), PlainPath(folder)
    description.check_leaves(path, leaves.named(abstract_params, under), under)

    def still_there(read: Callable[[], Any]) -> Any:
        try:
            result = read()
        except (ValueError, OSError) as error:
            lock.check()
            raise arrays.failed(path, error) from error
        lock.check()
        return result

    def chunks(name: str, index: tuple[slice, ...]) -> Iterator[Chunk]:
        name = f"{under}.{name}"
        store = still_there(lambda: arrays.open_stored(plain.path / str(found), [name])[name])
        shape: Any = store.chunk_layout.read_chunk.shape
        axes = [_split(part, size) for part, size in zip(index, shape, strict=True)]
        for cell in itertools.product(*axes):
            yield (
                tuple(
                    slice(part.start - bounds.start, part.stop - bounds.start)
                    for part, bounds in zip(cell, index, strict=True)
                ),
                still_there(store[cell].read().result),
            )

    return found, chunks


def _split(part: slice, size: int) -> list[slice]:
    """Splits `part` at the multiples of `size`."""
    edges = [part.start, *range(part.start // size * size + size, part.stop, size), part.stop]
    return [slice(*pair) for pair in itertools.pairwise(edges)]
