"""The device mesh, with axes (data, fsdp, tensor, context), outermost first."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from qwen_jax.config import MeshConfig
from qwen_jax.errors import ShardingError

AXES = ("data", "fsdp", "tensor", "context")

_DEFAULT = MeshConfig()


def make_mesh(config: MeshConfig = _DEFAULT, *, devices=None) -> Mesh:
    """Returns a mesh over `devices`.

    Args:
      config: sizes of the mesh axes; fsdp=None uses the devices that remain.
      devices: None: all devices.

    Raises:
      ShardingError: the product of the axis sizes is not the number of devices, or the slices of a
        multi-slice TPU run do not divide the axis `data`.
    """
    devices = jax.devices() if devices is None else devices
    fixed = config.data * config.tensor * config.context
    if config.fsdp is None and len(devices) % fixed:
        raise ShardingError(
            f"data x tensor x context = {fixed} does not divide the number of devices, "
            f"{len(devices)}.",
            "mesh.data, mesh.tensor, mesh.context",
            "choose sizes whose product divides the number of devices.",
        )
    fsdp = config.fsdp or len(devices) // fixed
    shape = (config.data, fsdp, config.tensor, config.context)
    if fixed * fsdp != len(devices):
        raise ShardingError(
            f"the mesh {dict(zip(AXES, shape, strict=True))} has {fixed * fsdp} positions, but "
            f"there are {len(devices)} devices.",
            "mesh",
            "choose sizes whose product is the number of devices, or omit mesh.fsdp to derive it.",
        )
    return Mesh(device_grid(shape, devices), AXES)


def device_grid(shape: tuple[int, int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices as an array [data, fsdp, tensor, context], by their interconnect.

    Adjacent positions get adjacent devices. TPU slices are connected by the data-center network,
    which is much slower than the links inside a slice: only `data`, the outermost axis, spans them.

    Raises:
      ShardingError: the slices have different sizes, or their number does not divide `data`.
    """
    if len(devices) == 1:
        return np.asarray(devices).reshape(shape)
    slices = slices_of(devices)
    if len(slices) == 1:
        # A mesh axis may split a torus dimension, such as data 2 x fsdp 64 on 4 x 4 x 8 chips,
        # which jax.make_mesh rejects.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    sizes = {index: len(each) for index, each in slices.items()}
    if len(set(sizes.values())) > 1:
        raise ShardingError(
            f"the slices have different numbers of devices: {sizes}.",
            "the slices of the run",
            "use slices of one type and size.",
        )
    if shape[0] % len(slices):
        raise ShardingError(
            f"mesh.data={shape[0]} is not a multiple of the {len(slices)} slices, so another axis "
            "would span slices.",
            "mesh.data",
            f"use --mesh.data={len(slices)} or a multiple of it: the data-center network between "
            "slices only suits the sum of gradients.",
        )
    inside = (shape[0] // len(slices), *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(
        inside, (len(slices), 1, 1, 1), devices, allow_split_physical_axes=True
    )


def slices_of(devices: Sequence[Any]) -> dict[int, list[Any]]:
    """Returns the devices of each TPU slice, by its index; on other platforms, one group.

    A GPU has a slice index too: that of its NVLink domain. A mesh axis may span those.
    """
    found: dict[int, list[Any]] = {}
    for device in devices:
        index = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        found.setdefault(index or 0, []).append(device)
    return found


def check_batch(batch_size: int, micro_batches: int, mesh: Mesh) -> None:
    """Raises ShardingError unless every device gets the same number of rows."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (ways * micro_batches):
        raise ShardingError(
            f"batch_size={batch_size} cannot be divided evenly into {micro_batches} micro-batches "
            f"over data x fsdp = {ways} devices.",
            "train.batch_size, train.micro_batches",
            f"use a multiple of {ways * micro_batches}, or fewer micro-batches.",
        )
