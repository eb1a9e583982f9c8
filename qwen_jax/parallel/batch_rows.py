"""Each process reads only the rows of a batch that its own devices hold.

Which rows those are follows from the mesh alone: two processes that hold pieces of the same rows
(a tensor axis that spans hosts) both read them, and a device order that interleaves hosts gives a
process rows that do not follow one another. Row r of the batch is row r on every mesh.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding

from qwen_jax.parallel.mesh import check_batch
from qwen_jax.parallel.sharding import DEFAULT_RULES


def rows_here(mesh: Mesh, batch_size: int, *, process: int | None = None) -> tuple[int, ...]:
    """The rows of a batch that a process has to read, in order.

    Args:
      batch_size: rows over all processes.
      process: None: this one.

    Raises:
      ShardingError: the rows do not divide over the mesh.
    """
    check_batch(batch_size, 1, mesh)
    process = jax.process_index() if process is None else process
    sharding = NamedSharding(mesh, DEFAULT_RULES.partition_spec(("batch",)))
    rows = set()
    for device, (index,) in sharding.devices_indices_map((batch_size,)).items():
        if device.process_index == process:
            rows.update(range(*index.indices(batch_size)))
    return tuple(sorted(rows))


def put_rows(local: Any, rows: Sequence[int], batch_size: int, sharding: Sharding) -> Any:
    """A tree of numpy arrays [rows, ...] -> global arrays [batch_size, ...] on the mesh.

    Args:
      rows: those of the batch that `local` holds, as rows_here names them.
      sharding: cuts the first dimension by rows, and others as it likes.
    """

    def put(x):
        x = np.asarray(x)

        def piece(index):
            first, end, _ = index[0].indices(batch_size)
            start = bisect.bisect_left(rows, first)
            return x[(slice(start, start + end - first), *index[1:])]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, piece)

    return jax.tree.map(put, local)


def on_host(tree: Any) -> Any:
    """The whole of every array as numpy, in every process, whatever devices hold it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
