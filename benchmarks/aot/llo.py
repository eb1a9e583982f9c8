"""Static utilization of a TPU program from the compiler's schedule, without a TPU.

libtpu can dump the final VLIW bundles of a kernel and the number of slots that each bundle fills in
each unit. A bundle issues in one cycle unless it waits for memory. The number of bundles is
therefore a lower bound on the cycles, and the fraction of filled slots is an upper bound on a
unit's utilization.
"""

import dataclasses
import itertools
import pathlib
import re

from qwen_jax.errors import ConfigError

# Value of LIBTPU_INIT_ARGS, set before libtpu is loaded; {} is the path of an empty folder.
DUMP_FLAGS = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final.*"
)
_UTILIZATION = "final_hlo-static-per-bundle-utilization.txt"


@dataclasses.dataclass(frozen=True)
class Block:
    """A basic block: number of bundles, and the fraction of each unit's slots that they fill."""

    bundles: int
    shares: dict[str, float]  # "MXU", "VALU", "XLU", "EUP", "VSTORE:SPILL", ...


def blocks(folder: pathlib.Path, kernel: str) -> list[Block]:
    """Returns the basic blocks of the kernel with the given name prefix, longest first.

    Raises:
      ConfigError: the dump does not contain the kernel.
    """
    for bundles in folder.glob("*final_bundles.txt"):
        match = re.match(rf"(\d+-{kernel}.*?)-\d+-final_bundles", bundles.name)
        if match:
            (slots,) = folder.glob(f"{match[1]}-*-{_UTILIZATION}")
            return _split(bundles.read_text(), slots.read_text())
    raise ConfigError(
        f"the compiler dump does not contain the kernel {kernel}.",
        str(folder),
        f"set LIBTPU_INIT_ARGS='{DUMP_FLAGS}' before JAX is imported.",
    )


def _split(bundles: str, utilization: str) -> list[Block]:
    capacities, rows = utilization.split("== UTILIZATION:")
    names = [name.strip() for name in capacities.strip().splitlines()[1].split(",")]
    capacity = [int(x) for x in capacities.strip().splitlines()[2].split()]
    rows = [[int(x) for x in line.split()] for line in rows.strip().splitlines()]
    edges = {0, len(rows)}
    for line in bundles.splitlines():
        # "  0x2f PF: > {" starts a block; a bundle with a branch ends one.
        match = re.match(r"\s*(0x[0-9a-f]+|0)\s*(LH|LB|LE|PB|PF|CT)?\s*:", line)
        if match and match[2]:
            edges.add(int(match[1], 16))
        if match and "sbr.rel" in line:
            edges.add(int(match[1], 16) + 1)
    ends = sorted(edges)
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
