"""Meshes over several TPU slices, on emulated devices with the coordinates of real ones."""

import dataclasses

import pytest

from qwen_jax.config import MeshConfig
from qwen_jax.errors import ShardingError
from qwen_jax.parallel.mesh import AXES, device_grid, make_mesh, slices_of

# chips of a slice, by its shape; what JAX calls the chips; cores per chip as devices
SLICES = {
    "v5e": ("TPU v5 lite", (4, 4, 1)),
    "v5p": ("TPU v5", (2, 2, 4)),
    "v6e": ("TPU v6 lite", (4, 4, 1)),
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as mesh_utils sees it."""

    id: int
    device_kind: str
    coords: tuple[int, int, int]
    slice_index: int
    process_index: int
    core_on_chip: int = 0
    platform: str = "tpu"


def emulate(kind: str, slices: int, platform: str = "tpu") -> list[Chip]:
    """Returns the devices of slices in the order of jax.devices(): by process, 4 chips a host."""
    name, (width, height, depth) = SLICES[kind]
    chips = []
    for index in range(slices):
        for z in range(depth):
            for y in range(height):
                for x in range(width):
                    process = index * 4 + (z * height * width + y * width + x) // 4
                    chips.append(
                        Chip(len(chips), name, (x, y, z), index, process, platform=platform)
                    )
    return chips


@pytest.mark.parametrize("slices", [2, 4])
@pytest.mark.parametrize("kind", SLICES)
@pytest.mark.parametrize("inside", [(1, 16, 1, 1), (2, 8, 1, 1), (1, 4, 4, 1), (2, 2, 2, 2)])
def test_device_grid_keeps_every_other_axis_in_a_slice(kind, slices, inside):
    devices = emulate(kind, slices)
    shape = (inside[0] * slices, *inside[1:])
    grid = device_grid(shape, devices)
    assert grid.shape == shape and {each.id for each in grid.flat} == set(range(len(devices)))
    for position in range(shape[0]):
        found = {each.slice_index for each in grid[position].flat}
        assert found == {position // inside[0]}  # slices follow each other along data


@pytest.mark.parametrize("kind", SLICES)
def test_device_grid_has_the_order_of_one_slice_in_each(kind):
    one = device_grid((1, 16, 1, 1), emulate(kind, 1))
    two = device_grid((2, 16, 1, 1), emulate(kind, 2))
    for index in range(2):
        assert [each.coords for each in two[index].flat] == [each.coords for each in one[0].flat]


@pytest.mark.parametrize("kind", SLICES)
@pytest.mark.parametrize("slices, data", [(2, 1), (4, 2), (3, 2)])
def test_make_mesh_refuses_an_axis_across_slices(kind, slices, data):
    fsdp = 16 * slices // data
    with pytest.raises(ShardingError, match=f"mesh.data={data} is not a multiple of the {slices}"):
        make_mesh(MeshConfig(data=data, fsdp=fsdp), devices=emulate(kind, slices))


def test_make_mesh_refuses_slices_of_different_sizes():
    devices = emulate("v5p", 2)[:-8]
    with pytest.raises(ShardingError, match=r"different numbers of devices: \{0: 16, 1: 8\}"):
        make_mesh(MeshConfig(data=2), devices=devices)


def test_slices_of_other_platforms_are_one_group():
    """A GPU's slice index is its NVLink domain, and fsdp may span those."""
    assert list(slices_of(emulate("v5p", 2, platform="gpu"))) == [0]
    assert AXES[0] == "data"
