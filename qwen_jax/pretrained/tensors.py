"""Reads safetensors files by memory mapping, and writes them as a stream.

Both hold at most a chunk of a tensor in memory.
"""

import dataclasses
import json
import math
import mmap
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
import safetensors

from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.utils.files import (
    LFS_FIX,
    LFS_WHAT,
    atomic_write,
    is_lfs_pointer,
    read_json,
    write_json,
)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PRODUCER = "qwen_jax"  # in the metadata of every file that this module writes

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_NAMES = {value: key for key, value in _DTYPES.items()}
_STRIP = 64  # columns per copy of a transposed array; the fastest of 16 to 256, as measured
_UNPICKLE = (  # weights_only rejects code; clone() because tied weights share memory
    'python -c "import glob, torch; from safetensors.torch import save_file; '
    "files = sorted(glob.glob('pytorch_model*.bin')); "
    "save_file({k: v.clone() for f in files "
    "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, "
    "'model.safetensors', metadata={'format': 'pt'})\""
)


class TensorFiles:
    """The tensors of a folder of safetensors files.

    Attributes:
      shapes: name -> shape.
      dtypes: name -> "float32", "bfloat16", "float16", or the safetensors name of another dtype.
      files: the names of the files.
      bytes: total size of all tensors.
    """

    def __init__(self, folder: pathlib.Path, *, single: str | None = None):
        """Reads the headers of all files.

        Args:
          single: name of the only file; None: model.safetensors, or what its index lists.

        Raises:
          CheckpointError: no weights are found, or files are missing or corrupted; the error lists
            all of them.
        """
        self._locations: dict[str, tuple[mmap.mmap, int]] = {}  # name -> file, offset of data
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.bytes = 0
        expected, problems = {} if single else _files_of(folder), []
        self.files = sorted({*expected.values()} if expected else {single or SINGLE})
        for file in self.files:
            problems += self._open(folder / file)
        problems += [
            f"{file} has no {name}"
            for name, file in expected.items()
            if name not in self.shapes and not problems
        ]
        if problems:
            fix = LFS_FIX if LFS_WHAT in problems[0] else "copy or download it again."
            raise CheckpointError(listed(problems, "bad weight file"), str(folder), fix)

    def _open(self, file: pathlib.Path) -> list[str]:
        if not file.is_file():
            return [f"{file.name} is missing"]
        try:
            with safetensors.safe_open(file, framework="np"):
                pass  # opening compares the header with the file size
        except safetensors.SafetensorError as error:
            with open(file, "rb") as opened:
                if is_lfs_pointer(opened.read(64)):
                    return [f"{file.name} {LFS_WHAT}"]
            return [f"{file.name} is corrupted ({error})"]
        except OSError as error:
            return [f"{file.name} cannot be read ({error.strerror or error})"]
        with open(file, "rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name in self._locations:
                return [f"{file.name} contains {name}, which is also in another file"]
            start, stop = entry["data_offsets"]
            self._locations[name] = mapped, 8 + length + start
            self.shapes[name] = tuple(entry["shape"])
            self.dtypes[name] = _DTYPES.get(str(entry["dtype"]), str(entry["dtype"]))
            self.bytes += stop - start
        return []

    def view(self, name: str) -> np.ndarray:
        """Returns a view of a tensor in its file; pages stay mapped until `forget`."""
        mapped, offset = self._locations[name]
        shape, dtype = self.shapes[name], np.dtype(self.dtypes[name])
        return np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)

    def forget(self, name: str) -> None:
        """Unmaps the tensor's pages from this process; the OS may keep them cached."""
        if hasattr(mmap, "MADV_DONTNEED"):  # on other systems the pages still count as used
            mapped, offset = self._locations[name]
            size = math.prod(self.shapes[name]) * np.dtype(self.dtypes[name]).itemsize
            start = offset - offset % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, start, offset + size - start)


def _files_of(folder: pathlib.Path) -> dict[str, str]:
    """Returns tensor name -> file for a folder with an index, or {} for a single file."""
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index, error=CheckpointError).get("weight_map")
        if not isinstance(weight_map, dict) or any(
            not isinstance(file, str) or pathlib.PurePath(file).name != file
            for file in weight_map.values()
        ):
            raise CheckpointError(
                "the index has no weight_map from tensors to files in this folder.",
                str(index),
                "copy or download the folder again.",
            )
        return weight_map
    if (folder / SINGLE).is_file():
        return {}
    others = sorted(
        file.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf", "*.safetensors")
        for file in folder.glob(pattern)
    )
    what = f"no {SINGLE} or {INDEX} found" + (f", only {', '.join(others)}." if others else ".")
    fix = "pass the folder of a checkpoint in safetensors format."
    if any(name.endswith(".gguf") for name in others):
        fix = "pass the folder that the GGUF file was made from; GGUF is not read."
    if any(not name.endswith((".safetensors", ".gguf")) for name in others):
        what += " Pickled weights can execute arbitrary code, so they are not supported."
        fix = f"convert them once with PyTorch by running this in the folder:\n    {_UNPICKLE}"
    raise CheckpointError(what, str(folder), fix)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to write; `chunks` computes it when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: Callable[[], Iterator[np.ndarray]]  # its rows in order, C-contiguous

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def write_tensors(
    folder: pathlib.Path,
    tensors: Sequence[Tensor],
    *,
    max_shard_bytes: int,
    single: str = SINGLE,
    progress: Callable[[int], object] = lambda size: None,
) -> None:
    """Writes model.safetensors or, above `max_shard_bytes`, numbered files with an index.

    Tensors are not split: one larger than `max_shard_bytes` gets its own file.

    Args:
      single: name of the file, if there is only one.
      progress: called with the size in bytes of each chunk after it is written.
    """
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.bytes for t in shards[-1]) + tensor.bytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        _write_file(folder / single, shards[0], progress)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard, progress)
        weight_map |= {tensor.name: file for tensor in shard}
    total = sum(tensor.bytes for tensor in tensors)
    write_json(
        folder / INDEX,
        {"metadata": {"total_size": total}, "weight_map": weight_map},
        indent=2,
    )


_UNITS = {"": 10**9, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def shard_bytes(size: int | str, where: str) -> int:
    """Returns the bytes of a size such as "5GB" or "500MiB"; a text without a unit is in GB.

    Raises:
      ConfigError: it is not a size, or less than a byte.
    """
    match = re.fullmatch(r"([\d.]+(?:e-?\d+)?) *([A-Za-z]*)", str(size).strip())
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    unit = _UNITS.get(match[2].upper()) if match else None
    result = int(number) if isinstance(size, int) else round(number * (unit or 0))
    if result < 1 or math.isinf(number):
        raise ConfigError(
            f"{str(size)[:40]!r} is not the size of a file.",
            where,
            "use a size such as 5GB, 500MB or 2GiB.",
        )
    return result


def _write_file(
    file: pathlib.Path, tensors: Iterable[Tensor], progress: Callable[[int], object]
) -> None:
    """Writes a safetensors file: 8 bytes of header length, the header, the data.

    The writer in the safetensors package would hold all tensors of a file in memory twice.
    """
    offset = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "producer": PRODUCER}}
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
    with atomic_write(file) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for chunk in tensor.chunks():
                assert chunk.shape[1:] == tensor.shape[1:] and chunk.dtype == tensor.dtype
                out.write(bits(chunk).data)
                written += chunk.nbytes
                progress(chunk.nbytes)
            assert written == tensor.bytes, tensor.name


def bits(array: np.ndarray) -> np.ndarray:
    """Views `array` as unsigned integers, which numpy copies faster than bfloat16."""
    return array.view(f"u{array.dtype.itemsize}")


def copy(into: np.ndarray, array: np.ndarray) -> None:
    """Copies `array` to `into`, of equal dtype; two to three times faster for transposed views."""
    into, array = bits(into), bits(array)
    # Strips of columns fit in the cache; otherwise each element costs a full cache line.
    in_order = array.strides[-1:] == (array.itemsize,)
    strip = max(1, into.shape[-1]) if in_order else _STRIP
    for start in range(0, into.shape[-1], strip):
        into[..., start : start + strip] = array[..., start : start + strip]


def producer_of(file: pathlib.Path) -> str | None:
    """Returns the producer in a safetensors file's metadata, if any."""
    try:
        with safetensors.safe_open(file, framework="np") as handle:
            return (handle.metadata() or {}).get("producer")
    except safetensors.SafetensorError:
        return None


def listed(problems: Sequence[str], kind: str) -> str:
    """Formats "3 bad tensors: a; b; c.", with at most 20 of them listed."""
    shown = "; ".join(problems[:20])
    more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
    return f"{len(problems)} {kind}{'s' if len(problems) > 1 else ''}: {shown}{more}."
