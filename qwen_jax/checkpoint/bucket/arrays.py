"""Writes and reads the chunks of arrays that this process holds, as zarr3 files on a local disk.

A file holds one chunk of an array: a shard of a device, or a part of one. Copies of a shard on
several devices share its chunks among them, so the hosts of a data-parallel run write in parallel.
"""

import concurrent.futures
import itertools
import json
import math
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from qwen_jax.errors import CheckpointError

FOLDER = "arrays"
METADATA = "zarr.json"
_FILE_BYTES = 128 << 20  # of a chunk in a file: uploads, hashes and retries go by file
_READ_BYTES = 4 << 20  # smallest readable part of a file
_THREADS = 16

Index = tuple[slice, ...]


class Chunk(NamedTuple):
    """A chunk to write: its array, its place there, and a copy of its values."""

    name: str
    index: Index
    values: np.ndarray


class Layout(NamedTuple):
    """How an array is stored: shape, dtype and the shape of the chunk in a file."""

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]

    @property
    def spec(self) -> dict[str, Any]:
        """Returns the zarr3 metadata."""
        inner = {"chunk_shape": _split(self.chunk, self.dtype, _READ_BYTES), "codecs": [_BYTES]}
        inner["index_codecs"] = [_BYTES, {"name": "crc32c"}]
        return {
            "shape": self.shape,
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunk}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}]
            if self.shape
            else [_BYTES],
            "fill_value": False if self.dtype == "bool" else 0,
        }


_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def layout_of(array: Any) -> Layout:
    """Returns the layout of a jax.Array or NumPy array; equal in all processes."""
    shape, dtype = tuple(array.shape), np.dtype(array.dtype).name
    sharding = getattr(array, "sharding", None)
    shard = shape if sharding is None else tuple(sharding.shard_shape(shape))
    return Layout(shape, dtype, _split(shard, dtype, _FILE_BYTES))


def own_chunks(arrays: dict[str, Any]) -> list[Chunk]:
    """Copies the chunks that this process writes; the arrays may be donated afterwards."""
    for array in arrays.values():
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
    return [chunk for name, array in arrays.items() for chunk in _own(name, array)]


def _own(name: str, array: Any) -> Iterator[Chunk]:
    layout, first = layout_of(array), zlib.crc32(name.encode())
    if not isinstance(array, jax.Array):  # equal in all processes
        if jax.process_index() == 0:
            for index in _chunks((slice(None),) * array.ndim, layout):
                yield Chunk(name, index, np.array(array[index]))
        return
    copies = (
        array.sharding.num_devices
        * math.prod(array.sharding.shard_shape(array.shape))
        // max(1, array.size)
    )
    for shard in array.addressable_shards:
        data: np.ndarray | None = None
        for number, index in enumerate(_chunks(shard.index, layout)):
            if (first + number) % max(1, copies) == shard.replica_id:
                data = np.asarray(shard.data) if data is None else data
                yield Chunk(name, index, np.array(data[_within(index, shard.index, array.shape)]))


def write(folder: pathlib.Path, layouts: dict[str, Layout], chunks: list[Chunk]) -> None:
    """Writes the chunks, and the metadata of all arrays, under `folder`/arrays."""
    stores = {name: _open(folder, name, layout) for name, layout in layouts.items()}
    for chunk in chunks:  # TensorStore writes in its own threads
        stores[chunk.name][chunk.index].write(
            chunk.values, can_reference_source_data_indefinitely=True
        ).result()


def files_of(layout: Layout, name: str, index: Index) -> Iterator[str]:
    """Yields the files, relative to the folder of the step, that hold array[index]."""
    ranges = [
        range(part.start // size, -(-part.stop // size))
        for part, size in zip(_bounds(index, layout.shape), layout.chunk, strict=True)
    ]
    for cell in itertools.product(*ranges):
        yield "/".join([FOLDER, name, "c", *map(str, cell)])


def read_layout(folder: pathlib.Path, name: str) -> Layout:
    """Reads the layout of an array from its metadata, which was verified before."""
    raw = json.loads((folder / FOLDER / name / METADATA).read_bytes())
    chunk = raw["chunk_grid"]["configuration"]["chunk_shape"]
    return Layout(tuple(raw["shape"]), raw["data_type"], tuple(chunk))


def needed(folder: pathlib.Path, wanted: dict[str, Any]) -> Iterator[str]:
    """Yields the files that this process needs of the wanted arrays (with shardings)."""
    for name, leaf in wanted.items():
        layout = read_layout(folder, name)
        for index in set(_indices(leaf).values()):
            yield from files_of(layout, name, _slices(index))


def load(folder: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Loads arrays by name with the shardings of `wanted` (default: the first local device).

    The files that `needed` lists must exist: zarr reads a missing file as zeros.
    """
    found = {}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for name, leaf in wanted.items():
            layout = read_layout(folder, name)
            if (layout.shape, layout.dtype) != (tuple(leaf.shape), np.dtype(leaf.dtype).name):
                raise CheckpointError(
                    f"{name} is {layout.dtype} {list(layout.shape)} in its own metadata, but not "
                    "in meta.json.",
                    str(folder),
                    "use an older step.",
                )
            store = _open(folder, name, None)
            indices = _indices(leaf)
            parts = {
                index: pool.submit(_read, store, _slices(index)) for index in set(indices.values())
            }
            found[name] = jax.make_array_from_single_device_arrays(
                tuple(leaf.shape),
                _sharding(leaf),
                [
                    jax.device_put(parts[index].result(), device)
                    for device, index in indices.items()
                ],
            )
    return found


def _read(store: Any, index: Index) -> np.ndarray:
    return np.asarray(store[index].read().result())


def _open(folder: pathlib.Path, name: str, layout: Layout | None) -> Any:
    import tensorstore  # Orbax requires it

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder / FOLDER / name}/"},
        "recheck_cached_data": False,
    }
    if layout is None:
        return tensorstore.open(spec, read=True).result()
    spec["store_data_equal_to_fill_value"] = True  # a missing file is damage
    spec["metadata"] = layout.spec
    return tensorstore.open(spec, create=True, open=True).result()


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )


def _indices(leaf: Any) -> dict[Any, tuple[tuple[int, int], ...]]:
    """Returns device -> (start, stop) by axis of its shard, for the devices of this process."""
    shape = tuple(leaf.shape)
    found = _sharding(leaf).addressable_devices_indices_map(shape)
    return {
        device: tuple((part.start, part.stop) for part in _bounds(index or (), shape))
        for device, index in found.items()
    }


def _slices(index: tuple[tuple[int, int], ...]) -> Index:
    return tuple(slice(*pair) for pair in index)


def _bounds(index: Index, shape: tuple[int, ...]) -> Index:
    """Returns slices with start and stop for each axis."""
    full = (*index, *(slice(None),) * (len(shape) - len(index)))
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(full, shape, strict=True))


def _chunks(index: Index, layout: Layout) -> Iterator[Index]:
    """Splits array[index] into chunks of the layout, whose multiples are its edges."""
    axes = [
        [slice(at, min(at + size, part.stop)) for at in range(part.start, part.stop, size)]
        for part, size in zip(_bounds(index, layout.shape), layout.chunk, strict=True)
    ]
    yield from itertools.product(*axes)


def _within(index: Index, outer: Index, shape: tuple[int, ...]) -> Index:
    return tuple(
        slice(part.start - base.start, part.stop - base.start)
        for part, base in zip(index, _bounds(outer, shape), strict=True)
    )


def _split(shape: tuple[int, ...], dtype: str, limit: int) -> tuple[int, ...]:
    """Divides axes, the first ones first, until a chunk has at most `limit` bytes.

    Each chunk is an exact fraction of the shape, so chunks of different shards do not overlap.
    """
    sizes = list(shape)
    itemsize = np.dtype(dtype).itemsize if dtype != "bfloat16" else 2
    for axis, size in enumerate(sizes):
        for divisor in _divisors(size):
            if math.prod(sizes) * itemsize <= limit:
                return tuple(sizes)
            sizes[axis] = size // divisor
    return tuple(sizes)


def _divisors(number: int) -> Iterator[int]:
    """Yields the divisors above 1, from the smallest."""
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    yield from sorted({*small, *(number // i for i in small)} - {1})
