"""A jax array of any sharding <-> its pieces on the host, one piece at a time.

An index is a tuple of slices, one per axis, within the bounds of the array.
"""

import functools
import gc
import math
from collections.abc import Callable

import jax
import ml_dtypes  # noqa: F401  (numpy learns the name bfloat16)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from qwen_jax.errors import CheckpointError

Index = tuple[slice, ...]
_ALIGNMENT = 64  # bytes


def place(
    shape: tuple[int, ...], sharding: Sharding | None, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """The array whose every piece `read` makes; this process's shards alone are read.

    Each shard is on its device before the next is read, so the host never holds more than one
    (jax.make_array_from_callback holds all of a process's at once). What `empty` made becomes the
    shard itself on a CPU.

    Args:
      sharding: None: the default device.
    """
    whole = tuple(slice(0, size) for size in shape)
    if sharding is None:
        return jax.block_until_ready(jax.device_put(read(whole)))
    owners: dict[tuple, list] = {}  # slices are no keys before Python 3.12
    devices = sharding.addressable_devices_indices_map(shape)
    for device, index in devices.items():
        bounds = tuple((part.start, part.stop) for part in bounded(index or whole, shape))
        owners.setdefault(bounds, []).append(device)
    placed = {}
    for bounds, copies in owners.items():
        block = read(tuple(slice(*bound) for bound in bounds))
        for device in copies:
            placed[device] = jax.block_until_ready(jax.device_put(block, device))
        del block
        gc.collect(0)  # JAX lets go of a block that it has copied at the next collection
    return jax.make_array_from_single_device_arrays(
        shape, sharding, [placed[device] for device in devices]
    )


def empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """numpy.empty at an address that JAX on a CPU takes over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """`array` in `dtype`.

    Raises:
      CheckpointError: a finite value becomes infinite.
    """
    if array.dtype == np.dtype(dtype):
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(np.dtype(dtype))
    if not np.array_equal(np.isfinite(array), np.isfinite(converted)):
        raise CheckpointError(
            f"{name} has values beyond the range of {dtype}.",
            "param_dtype",
            "use bfloat16 or float32.",
        )
    return converted


def fetch(array: jax.Array | np.ndarray, index: Index) -> np.ndarray:
    """array[index] on the host: the devices are asked for this piece alone.

    Of an array that spans processes every one of them must fetch the same piece, and gets it.
    """
    if isinstance(array, np.ndarray):
        return array[index]
    starts = tuple(np.int32(part.start) for part in index)
    sizes = tuple(part.stop - part.start for part in index)
    if not array.is_fully_addressable:
        piece = _replicate_piece(array, starts, sizes=sizes, sharding=_everywhere(array.sharding))
        return np.asarray(piece.addressable_data(0))
    piece = np.empty(sizes, array.dtype)
    for shard in array.addressable_shards:
        held = bounded(shard.index, array.shape)
        common = [
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(held, index, strict=True)
        ]
        if shard.replica_id or any(part.start >= part.stop for part in common):
            continue
        cut = _piece(
            shard.data,
            tuple(np.int32(part.start - own.start) for part, own in zip(common, held, strict=True)),
            sizes=tuple(part.stop - part.start for part in common),
        )
        piece[
            tuple(
                slice(part.start - to.start, part.stop - to.start)
                for part, to in zip(common, index, strict=True)
            )
        ] = cut
    return piece


def bounded(index: Index, shape: tuple[int, ...]) -> Index:
    """`index` with every None replaced by the bound that it stands for."""
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


@functools.partial(jax.jit, static_argnames="sizes")
def _piece(array: jax.Array, starts, *, sizes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(array, starts, sizes)


@functools.partial(jax.jit, static_argnames=("sizes", "sharding"))
def _replicate_piece(array: jax.Array, starts, *, sizes: tuple[int, ...], sharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jax.lax.dynamic_slice(array, starts, sizes), sharding)


def _everywhere(sharding: Sharding) -> Sharding:
    assert isinstance(sharding, NamedSharding), sharding
    return NamedSharding(sharding.mesh, PartitionSpec())
