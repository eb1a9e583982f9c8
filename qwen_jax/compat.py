"""The only module that uses private names of other libraries.

Any release of a library may move a private name; tests/test_compat.py then fails. Each name is
imported when its function is called, so importing this module is cheap.
"""

import re
from collections.abc import Sequence
from typing import Any


def coordination_client() -> Any:
    """Returns this process's client of JAX's coordination service (key-value store, barriers).

    Returns None before jax.distributed.initialize. JAX has no public name for the client.
    """
    from jax._src import distributed

    return distributed.global_state.client


def write_cache_from_every_process() -> None:
    """Lets every process write JAX's persistent compilation cache, not only process 0.

    On CPUs, the cache key of a program differs between processes. Without this, every process but
    process 0 compiles again after each restart. For tests and benchmarks of restarts.
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


def decompress_program(data: bytes) -> bytes:
    """Returns a program of JAX's persistent compilation cache, decompressed as JAX would.

    Raises:
      Exception: the file is truncated or damaged; the type is the compressor's.
    """
    from jax._src import compilation_cache

    return compilation_cache.decompress_executable(data)


def parent_of(dataset: Any) -> Any:
    """Returns the dataset that a grain.MapDataset with one parent reads from."""
    return dataset._parent


def batched_items(dataset: Any, indices: Sequence[int]) -> Sequence[Any]:
    """Reads several items of a grain.MapDataset in one call, which is faster than one at a time."""
    return dataset._getitems(indices)


def stored_array(folder: str, name: str) -> dict[str, Any]:
    """Returns the TensorStore spec of one array of a pytree that Orbax saved in `folder`.

    Orbax's own reader loads full shards; TensorStore reads any slice. The layout (one OCDBT
    database for the pytree "state", zarr3 inside) is undocumented.
    """
    base = {"driver": "file", "path": f"{folder}/state/"}  # a URL would interpret % # ? |
    database = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    return {"driver": "zarr3", "kvstore": database}


def os_error_code(error: BaseException) -> int | None:
    """Returns the errno in the text of a TensorStore error; None if the text has none."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def credentials_of(client: Any) -> Any:
    """Returns the credentials of a google.cloud.storage.Client, for the clients of other threads.

    Each thread needs a session of its own, and would otherwise look for credentials by itself.
    """
    return client._credentials
