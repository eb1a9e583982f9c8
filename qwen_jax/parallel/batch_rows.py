"""Selects the rows of a batch that a process reads: those that its own devices hold.

The mesh determines these rows. Two processes that hold shards of the same rows (if a tensor axis
spans hosts) both read them. If the device order interleaves hosts, the rows of a process are not
contiguous. Row r of the batch is row r on every mesh.
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
    """Returns the rows of a batch that a process reads, in ascending order.

    Args:
      batch_size: number of rows over all processes.
      process: index of the process; None: this process.

    Raises:
      ShardingError: the rows cannot be divided evenly over the mesh.
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
    """Returns global arrays [batch_size, ...] on the mesh, from local NumPy arrays [rows, ...].

    Args:
      rows: rows of the batch that `local` holds, as returned by rows_here.
      sharding: sharding of the first dimension over rows; other dimensions may be sharded too.
    """

    def put(x):
        x = np.asarray(x)

        def shard(index):
            first, end, _ = index[0].indices(batch_size)
            start = bisect.bisect_left(rows, first)
            return x[(slice(start, start + end - first), *index[1:])]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, shard)

    return jax.tree.map(put, local)


def on_host(tree: Any) -> Any:
    """Returns the full arrays as NumPy arrays in every process, whichever devices hold them."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
