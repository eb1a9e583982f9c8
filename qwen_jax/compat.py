"""Every private name of another library that this package uses, in one place.

A library may move a private name in any release; tests/test_compat.py fails when one of these is
gone. Each is imported when it is called, so that importing this module costs nothing.
"""

import re
from collections.abc import Sequence
from typing import Any


def coordination_client() -> Any:
    """The client of JAX's coordination service (key-value store, barriers) in this process.

    Returns None before jax.distributed.initialize. JAX has no public name for it.
    """
    from jax._src import distributed

    return distributed.global_state.client


def write_cache_from_every_process() -> None:
    """Lets every process write JAX's persistent compilation cache, not only process 0.

    On CPUs a program has another cache key in each process, so all others compile again after
    every restart. For tests and benchmarks of restarts.
    """
    from jax._src import compiler, distributed

    write = compiler._cache_write

    def write_as_first(*arguments):
        state = distributed.global_state
        process, state.process_id = state.process_id, 0
        try:
            write(*arguments)
        finally:
            state.process_id = process

    compiler._cache_write = write_as_first


def parent_of(dataset: Any) -> Any:
    """The dataset that a grain.MapDataset with one parent reads from."""
    return dataset._parent


def batched_items(dataset: Any, indices: Sequence[int]) -> Sequence[Any]:
    """Several items of a grain.MapDataset in one call, which Grain does faster than one by one."""
    return dataset._getitems(indices)


def stored_array(folder: str, name: str) -> dict[str, Any]:
    """The TensorStore spec of one array of a pytree that Orbax saved in `folder`.

    Orbax's own reader loads whole shards; TensorStore reads any slice. The layout (one OCDBT
    database for the pytree "state", zarr3 inside) is not a documented format.
    """
    database = {"driver": "ocdbt", "base": f"file://{folder}/state/", "path": f"{name}/"}
    return {"driver": "zarr3", "kvstore": database}


def os_error_code(error: BaseException) -> int | None:
    """The errno behind an error of TensorStore, which reports it only as text; None: not one."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None
