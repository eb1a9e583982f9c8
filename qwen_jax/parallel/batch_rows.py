"""Each process reads only the rows of a batch that its own devices hold.

The mesh determines these rows. Two processes that hold shards of the same rows (a tensor axis that
spans hosts) both read them. A device order that interleaves hosts gives a process rows that are not
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
    """Returns the rows of a batch that a process reads, in order.

    Args:
      batch_size: rows over all processes.
      process: index of the process; None: this one.

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
    """Returns global arrays [batch_size, ...] on the mesh from numpy arrays [rows, ...].

    Args:
      rows: the rows of the batch that `local` holds, as returned by rows_here.
      sharding: shards the first dimension by rows; other dimensions may be sharded too.
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
    """Returns the full arrays as numpy in every process, whichever devices hold them."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
