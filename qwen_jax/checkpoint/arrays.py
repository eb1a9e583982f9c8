"""Writes and reads the arrays of a step with Orbax, as one flat dictionary by name."""

import logging
import pathlib
from typing import Any

import jax

from qwen_jax.utils import tree as leaves

NAME = "arrays"
_FILE_BYTES = 256 << 20  # size of Orbax's data files: small enough to hash several in parallel
_CHUNK_BYTES = 4 << 20  # smallest readable part of an array, independent of how it was sharded
_READ_BYTES = 4 << 30  # limit on reads in flight; without it, host memory holds all arrays at once


def save_async(folder: pathlib.Path, arrays: dict[str, Any]):
    """Starts saving; returns Orbax's response as soon as the arrays may be donated.

    The response's `.result()` waits for all processes.
    """
    with _context():
        return _orbax().save_async(str(folder / NAME), arrays)


def load(folder: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Loads arrays by name with the shardings of `wanted` (default: the first local device)."""
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
        for name, leaf in wanted.items()
    }
    with _context(largest=max(map(leaves.bytes_of, wanted.values()), default=0)):
        return _orbax().load(str(folder / NAME), wanted) if wanted else {}


def quiet() -> None:
    """Silences Orbax, which logs every array at INFO level and warns about intended settings."""
    for name in ("orbax", "orbax.checkpoint"):
        logging.getLogger(name).setLevel(logging.ERROR)


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
