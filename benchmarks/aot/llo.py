"""What a TPU program keeps busy, read from the compiler's own schedule: no TPU is needed.

libtpu can write the final VLIW bundles of a kernel and how many slots of each unit every bundle
fills. A bundle is issued in one cycle unless it waits for memory, so bundles are the least number
of cycles, and a share of slots is an upper bound of a unit's utilization.
"""

import dataclasses
import itertools
import pathlib
import re

from qwen_jax.errors import ConfigError

# For LIBTPU_INIT_ARGS, before libtpu is loaded; {} is an empty folder.
DUMP_FLAGS = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final.*"
)
_UTILIZATION = "final_hlo-static-per-bundle-utilization.txt"


@dataclasses.dataclass(frozen=True)
class Block:
    """Bundles without a branch among them, and the share of each unit's slots that they fill."""

    bundles: int
    shares: dict[str, float]  # "MXU", "VALU", "XLU", "EUP", "VSTORE:SPILL", ...


def blocks(folder: pathlib.Path, kernel: str) -> list[Block]:
    """The basic blocks of the kernel whose name starts so, longest first.

    Raises:
      ConfigError: no such kernel was dumped.
    """
    for bundles in folder.glob("*final_bundles.txt"):
        match = re.match(rf"(\d+-{kernel}.*?)-\d+-final_bundles", bundles.name)
        if match:
            (slots,) = folder.glob(f"{match[1]}-*-{_UTILIZATION}")
            return _split(bundles.read_text(), slots.read_text())
    raise ConfigError(
        f"no kernel {kernel} among the compiler's dumps.",
        str(folder),
        f"set LIBTPU_INIT_ARGS='{DUMP_FLAGS}' before JAX is imported.",
    )


def _split(bundles: str, utilization: str) -> list[Block]:
    capacities, rows = utilization.split("== UTILIZATION:")
    names = [name.strip() for name in capacities.strip().splitlines()[1].split(",")]
    capacity = [int(x) for x in capacities.strip().splitlines()[2].split()]
    rows = [[int(x) for x in line.split()] for line in rows.strip().splitlines()]
    cuts = {0, len(rows)}
    for line in bundles.splitlines():
        # "  0x2f PF: > {" starts a block; a bundle with a branch ends one.
        match = re.match(r"\s*(0x[0-9a-f]+|0)\s*(LH|LB|LE|PB|PF|CT)?\s*:", line)
        if match and match[2]:
            cuts.add(int(match[1], 16))
        if match and "sbr.rel" in line:
            cuts.add(int(match[1], 16) + 1)
    ends = sorted(cuts)
    found = []
    for begin, end in itertools.pairwise(ends):
        totals = [sum(column) for column in zip(*rows[begin:end], strict=False)]
        found.append(
            Block(
                end - begin,
                {
                    name: total / (size * (end - begin))
                    for name, total, size in zip(names, totals, capacity, strict=False)
                },
            )
        )
    return sorted(found, key=lambda block: -block.bundles)
