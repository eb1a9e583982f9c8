"""Moves jax arrays of any sharding to and from the host, one slice at a time.

An index is a tuple of slices, one per axis, within the bounds of the array.
"""

import functools
import gc
import math
from collections.abc import Callable

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from qwen_jax.errors import CheckpointError

Index = tuple[slice, ...]
_ALIGNMENT = 64  # bytes


def load_sharded(
    shape: tuple[int, ...], sharding: Sharding | None, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """Builds an array from the shards that `read` returns; reads only this process's shards.

    Each shard is on its device before the next one is read, so the host holds at most one
    (jax.make_array_from_callback holds all of a process's shards at once). On a CPU an array from
    `empty` becomes the shard without a copy.

    Args:
      sharding: the target sharding; None: the default device.
      read: maps an index to that slice of the array, on the host.
    """
    full = tuple(slice(0, size) for size in shape)
    if sharding is None:
        return jax.block_until_ready(jax.device_put(read(full)))
    owners: dict[tuple, list] = {}  # slices are not hashable before Python 3.12
    devices = sharding.addressable_devices_indices_map(shape)
    for device, index in devices.items():
        bounds = tuple((part.start, part.stop) for part in bounded(index or full, shape))
        owners.setdefault(bounds, []).append(device)
    placed = {}
    for bounds, copies in owners.items():
        block = read(tuple(slice(*bound) for bound in bounds))
        for device in copies:
            placed[device] = jax.block_until_ready(jax.device_put(block, device))
        del block
        gc.collect(0)  # JAX frees a copied block only at the next collection
    return jax.make_array_from_single_device_arrays(
        shape, sharding, [placed[device] for device in devices]
    )


def empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Like numpy.empty, aligned so that JAX on a CPU uses the memory without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Casts `array` to `dtype`.

    Raises:
      CheckpointError: a finite value overflows to infinity; the error names the tensor `name`.
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
    """Returns array[index] on the host; transfers only this slice from the devices.

    If the array spans processes, every process must fetch the same slice, and each receives it.
    """
    if isinstance(array, np.ndarray):
        return array[index]
    starts = tuple(np.int32(part.start) for part in index)
    sizes = tuple(part.stop - part.start for part in index)
    if not array.is_fully_addressable:
        copy = _replicated_slice(array, starts, sizes=sizes, sharding=_replicated(array.sharding))
        return np.asarray(copy.addressable_data(0))
    out = np.empty(sizes, array.dtype)
    for shard in array.addressable_shards:
        held = bounded(shard.index, array.shape)
        common = [
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(held, index, strict=True)
        ]
        if shard.replica_id or any(part.start >= part.stop for part in common):
            continue
        part = _within(common, held)
        if _in_host_memory(shard):  # a view; a slice by JAX would be a program for every shape
            part_of_shard = np.asarray(shard.data)[part]
        else:
            part_of_shard = _slice(
                shard.data,
                tuple(np.int32(axis.start) for axis in part),
                sizes=tuple(axis.stop - axis.start for axis in part),
            )
        out[_within(common, index)] = part_of_shard
    return out


def _within(part, outer) -> Index:
    """Returns the slices of `part` relative to the start of `outer`."""
    return tuple(
        slice(inner.start - of.start, inner.stop - of.start)
        for inner, of in zip(part, outer, strict=True)
    )


def _in_host_memory(shard) -> bool:
    return shard.device.platform == "cpu"


def bounded(index: Index, shape: tuple[int, ...]) -> Index:
    """Replaces None in the slices of `index` with explicit bounds."""
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


@functools.partial(jax.jit, static_argnames="sizes")
def _slice(array: jax.Array, starts, *, sizes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(array, starts, sizes)


@functools.partial(jax.jit, static_argnames=("sizes", "sharding"))
def _replicated_slice(array: jax.Array, starts, *, sizes: tuple[int, ...], sharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jax.lax.dynamic_slice(array, starts, sizes), sharding)


def _replicated(sharding: Sharding) -> Sharding:
    assert isinstance(sharding, NamedSharding), sharding
    return NamedSharding(sharding.mesh, PartitionSpec())
