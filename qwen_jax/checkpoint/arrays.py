"""Writes and reads the arrays of a step with Orbax, as one flat dictionary by name."""

import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from qwen_jax import compat
from qwen_jax.checkpoint.unreadable import unreadable
from qwen_jax.errors import CheckpointError
from qwen_jax.utils import tree as leaves

NAME = "arrays"
_FILE_BYTES = 256 << 20  # size of Orbax's data files: small enough to hash several in parallel
_CHUNK_BYTES = 4 << 20  # smallest readable part of an array, independent of how it was sharded
_READ_BYTES = 4 << 30  # limit on reads in flight; without it, host memory holds all arrays at once


def save_async(folder: pathlib.Path, arrays: dict[str, Any]):
    """Starts saving; returns Orbax's response as soon as the arrays may be donated.

    The response's `.result()` waits for all processes.

    Args:
      folder: a PlainPath of the step, equal in all processes.
    """
    with _context():
        return _orbax().save_async(str(folder / NAME), arrays)


def load(folder: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Loads arrays by name with the shardings of `wanted` (default: the first local device).

    Args:
      folder: a PlainPath of the step, equal in all processes.
    """
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
        for name, leaf in wanted.items()
    }
    with _context(largest=max(map(leaves.bytes_of, wanted.values()), default=0)):
        return _orbax().load(str(folder / NAME), wanted) if wanted else {}


def open_stored(folder: pathlib.Path, names: Iterable[str]) -> dict[str, Any]:
    """Opens arrays as TensorStore objects, which read any slice. Reads only their metadata.

    Args:
      folder: a PlainPath of the step.

    Raises:
      ValueError: an array is missing or damaged.
    """
    import tensorstore  # Orbax stores arrays with it

    opening = {name: tensorstore.open(_spec(folder, name), read=True) for name in names}
    return {name: store.result() for name, store in opening.items()}


def _spec(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns the TensorStore spec of an array, also of a step that was copied from a store."""
    if (folder / NAME / name).is_dir():
        path = f"{folder / NAME / name}/"
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    return compat.stored_array(str(folder / NAME), name)


def check_stored(folder: pathlib.Path, types: dict[str, list]) -> None:
    """Checks that all arrays can be opened, and their shapes and dtypes.

    Args:
      folder: a PlainPath of the step.
      types: name -> [shape, dtype], as in meta.json.

    Raises:
      CheckpointError: an array cannot be opened, or has another shape or dtype.
    """
    try:
        stored = open_stored(folder, types)
    except ValueError as error:
        raise CheckpointError(
            f"the saved arrays cannot be opened: {str(error)[:300]}",
            str(folder),
            "use a --run_dir on another file system, or a simpler name.",
        ) from error
    found = {
        name: [list(store.shape), np.dtype(store.dtype.numpy_dtype).name]
        for name, store in stored.items()
    }
    if different := [name for name in types if found[name] != types[name]]:
        listed = "; ".join(f"{name}: {found[name]}, not {types[name]}" for name in different[:5])
        raise CheckpointError(
            f"{len(different)} saved arrays have another shape or dtype: {listed}.",
            str(folder),
            "save to another file system.",
        )


def failed(path: pathlib.Path, error: Exception) -> CheckpointError:
    """Returns the error for arrays of the step `path`, whose files are intact, but do not load."""
    number = compat.os_error_code(error) or getattr(error, "errno", None)
    if number is not None:
        return unreadable(path / NAME, OSError(number, os.strerror(number)))
    return CheckpointError(
        f"the arrays cannot be loaded: {type(error).__name__}: {str(error)[:500]}",
        str(path / NAME),
        "check the file system, and run the command again; or move this step elsewhere to use an "
        "older one.",
    )


def quiet() -> None:
    """Silences Orbax, which logs every array at INFO level and warns about intended settings.

    Its threads also log a traceback of every error, before `save_async`'s response raises it.
    """
    for name in ("orbax", "orbax.checkpoint"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("absl").addFilter(_is_not_raised_again)


def _is_not_raised_again(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in pathlib.PurePath(record.pathname).parts)


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )


def _orbax():
    from orbax.checkpoint import v1  # here, because importing it takes a second

    return v1


def _context(largest: int = 0):
    """Returns Orbax's settings.

    Args:
      largest: bytes of the largest array, which the limit on reads in flight must admit.
    """
    context = _orbax().Context()
    # Weights are incompressible, and compression halves the speed.
    context.array.saving.use_compression = False
    context.array.saving.ocdbt_target_data_file_size = _FILE_BYTES
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    context.memory.read_concurrent_bytes = max(_READ_BYTES, 2 * largest)
    context.pytree.loading.partial_load = True  # description.check_leaves compares the names
    return context
