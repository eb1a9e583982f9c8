"""The parameters of a checkpoint, without the rest, read in pieces of a few megabytes.

Orbax itself reads whole shards, all of an array at once.
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qwen_jax import compat
from qwen_jax.checkpoint import arrays, description, newest_good
from qwen_jax.errors import CheckpointError
from qwen_jax.utils import tree as leaves

Piece = tuple[tuple[slice, ...], np.ndarray]


def open_params(
    folder: str | os.PathLike,
    abstract_params: Any,
    *,
    step: int | None = None,
    under: str = "params",
) -> tuple[int, Callable[[str, tuple[slice, ...]], Iterator[Piece]]]:
    """The parameters alone, of the newest good step, to be read piece by piece.

    Nothing in the folder is changed, so a run may be going on in it.

    Args:
      abstract_params: what the saved state has as `.params`; see Checkpointer.restore.
      under: another place in the state: "policy.params", say.

    Returns:
      The step, and a function (name, index) -> the pieces that make up the parameter
      "layers.mlp.w_up", say, within the bounds `index`: each with its place in array[index], no
      larger than a chunk of the file (a few megabytes), whatever the shards that were saved.

    Raises:
      CheckpointError: as Checkpointer.restore; or there is no checkpoint.
    """
    folder = pathlib.Path(folder).absolute()
    chosen = newest_good.choose(folder, step, set_aside=False)
    if chosen is None:
        raise CheckpointError(
            "there is no checkpoint here.",
            str(folder),
            "pass the `checkpoints` folder of a run that has saved one.",
        )
    path = folder / str(chosen)
    description.check_leaves(path, leaves.named(abstract_params, under), under)

    def pieces(name: str, index: tuple[slice, ...]) -> Iterator[Piece]:
        store = _open_array(path / arrays.NAME, f"{under}.{name}")
        chunk: Any = store.chunk_layout.read_chunk.shape
        axes = [_cut(part, step) for part, step in zip(index, chunk, strict=True)]
        for cell in itertools.product(*axes):
            yield (
                tuple(
                    slice(part.start - whole.start, part.stop - whole.start)
                    for part, whole in zip(cell, index, strict=True)
                ),
                store[cell].read().result(),
            )

    return chosen, pieces


def _cut(part: slice, step: int) -> list[slice]:
    """`part` cut at the multiples of `step`."""
    edges = [part.start, *range(part.start // step * step + step, part.stop, step), part.stop]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _open_array(folder: pathlib.Path, name: str):
    import tensorstore  # what Orbax is built on

    return tensorstore.open(compat.stored_array(str(folder), name), read=True).result()
