"""Tile sizes of the kernels by device, head size and dtype, measured and stored in tiles.json.

`benchmarks/attention/attention.py --tune` measures them on a device and writes the table. A kernel
that has no row in the table uses its own defaults.
"""

import contextlib
import contextvars
import functools
import json
import pathlib
import types
from collections.abc import Iterator, Mapping

TABLE = pathlib.Path(__file__).with_suffix(".json")

_override: contextvars.ContextVar[Mapping[str, dict[str, int]]] = contextvars.ContextVar(
    "tiles", default=types.MappingProxyType({})
)


def lookup(
    kernel: str, *, kind: str, head_size: int, dtype: str, default: dict[str, int]
) -> dict[str, int]:
    """Returns the tile sizes of `kernel` ("tpu_forward", "hopper_backward", ...) on a device kind.

    Args:
      kind: device.device_kind, such as "TPU v5" or "NVIDIA H200".
      default: parameter of the kernel -> size, used if the table has no row.
    """
    if kernel in _override.get():
        return default | _override.get()[kernel]
    for row in table():
        if (row["kernel"], row["kind"], row["head_size"], row["dtype"]) == (
            kernel,
            kind,
            head_size,
            dtype,
        ):
            return default | row["tiles"]
    return default


@functools.cache
def table() -> list[dict]:
    """Returns the rows of tiles.json, each with the date and versions of its measurement."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


@contextlib.contextmanager
def override(**tiles: dict[str, int]) -> Iterator[None]:
    """Uses these sizes for functions traced in the block: override(tpu_forward={"query": 512})."""
    token = _override.set({**_override.get(), **tiles})
    try:
        yield
    finally:
        _override.reset(token)
