"""TPU slices by their Google Cloud names, and the specifications of each kind of chip.

Specifications are the vendor's: peak BF16 FLOP/s, memory size and bandwidth of a chip, and the
bandwidth of one link in one direction. The clock is derived from the peak and the size of the
matrix units (v5p: 2 cores with 4 units of 128 x 128 each). It converts compiler cycles to seconds.
"""

import dataclasses
import math
import re

from qwen_jax.errors import ConfigError, unknown_name


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specifications of one chip, which is one JAX device."""

    kind: str  # device_kind in JAX
    peak_flops: float  # BF16 FLOP/s
    hbm_bytes: int  # available to a program
    hbm_bandwidth: float  # bytes per second
    link_bandwidth: float  # bytes per second, one link, one direction
    clock: float  # cycles per second
    cores: int  # number of cores that share the bundles of a Pallas kernel
    dimensions: int  # number of torus dimensions
    per_name: int  # units that a slice's name counts per chip: 2 for cores, 1 for chips
    wraps: int  # a torus dimension wraps around if divisible by this (see network.Network)


GIB = 2**30
CHIPS = {
    "v5e": Chip("TPU v5 lite", 197e12, int(15.75 * GIB), 819e9, 45e9, 1.5e9, 1, 2, 1, 16),
    "v5p": Chip("TPU v5", 459e12, int(95.74 * GIB), 2765e9, 90e9, 1.75e9, 2, 3, 2, 4),
    "v6e": Chip("TPU v6 lite", 918e12, int(31.25 * GIB), 1640e9, 90e9, 1.75e9, 1, 2, 1, 16),
}
# Default shapes: number of chips -> torus. Other shapes are written as "v5p:4x4x4".
_SHAPES = {
    2: {4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    3: {
        4: (2, 2, 1),
        8: (2, 2, 2),
        16: (2, 2, 4),
        32: (2, 4, 4),
        64: (4, 4, 4),
        128: (4, 4, 8),
        256: (4, 8, 8),
        512: (8, 8, 8),
        1024: (8, 8, 16),
        2048: (8, 16, 16),
        4096: (16, 16, 16),
    },
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice."""

    name: str  # as passed by the user
    chip: Chip
    shape: tuple[int, ...]  # chips along each side
    libtpu: str  # name in libtpu: "v5p:4x4x8"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        sides = "x".join(map(str, self.shape))
        return f"{self.name}: {self.chips} chips of {self.chip.kind}, {sides}"


def by_name(name: str) -> Topology:
    """Returns a slice by name: "v5p-256" (256 cores, 128 chips), "v5e-16" or "v5p:4x4x8".

    Raises:
      ConfigError: the kind of chip or the size of the slice is unknown.
    """
    match = re.fullmatch(r"(\w+?)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    if match is None:
        raise ConfigError(
            f"{name!r} is not a valid slice name.",
            "--topology",
            "use a name such as v5p-256, v5e-16 or v5p:4x4x8.",
        )
    kind, number, sides = match.groups()
    if kind not in CHIPS:
        raise unknown_name("kind of TPU", kind, CHIPS, "--topology")
    chip = CHIPS[kind]
    if sides:
        shape = tuple(int(side) for side in sides.split("x"))
        if len(shape) != chip.dimensions:
            raise ConfigError(
                f"{name!r} has {len(shape)} dimensions.",
                "--topology",
                f"use {chip.dimensions} dimensions for {kind}.",
            )
    else:
        known = _SHAPES[chip.dimensions]
        if int(number) % chip.per_name or int(number) // chip.per_name not in known:
            raise ConfigError(
                f"{name} is not a known slice.",
                "--topology",
                "known: "
                + ", ".join(f"{kind}-{chips * chip.per_name}" for chips in known)
                + f"; or pass the dimensions, such as {kind}:"
                + "x".join("4" * chip.dimensions)
                + ".",
            )
        shape = known[int(number) // chip.per_name]
    return Topology(name, chip, shape, f"{kind}:{'x'.join(map(str, shape))}")
