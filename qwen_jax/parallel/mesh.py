"""The device mesh, with axes (data, fsdp, tensor, context), outermost first."""

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
      ShardingError: the product of the axis sizes is not the number of devices.
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
    if len(devices) == 1:
        return Mesh(np.asarray(devices).reshape(shape), AXES)
    # Adjacent positions get adjacent devices. A mesh axis may split a torus dimension, such as data
    # 2 x fsdp 64 on 4 x 4 x 8 chips, which jax.make_mesh rejects.
    return Mesh(
        mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True), AXES
    )


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
