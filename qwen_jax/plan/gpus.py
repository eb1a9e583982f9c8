"""GPUs, on paper alone: nothing is compiled, and every line says that it is only estimated.

XLA can compile for a GPU that is not there, but gives no costs of what it compiled; what is left is
arithmetic: memory by what a step must hold, time from the makers' peak at a share of it that is
stated.
"""

import dataclasses

from qwen_jax.errors import ConfigError
from qwen_jax.plan import search
from qwen_jax.plan.estimate import from_times
from qwen_jax.plan.stages import Workload
from qwen_jax.plan.topologies import GIB, Chip, Topology
from qwen_jax.utils.format import format_gib

# Links: NVLink's, both directions counted once; beyond 8 GPUs a network of 50 GB/s for each.
_NVLINK, _NETWORK, _NODE = 450e9, 50e9, 8
KINDS = {
    "h100": Chip("NVIDIA H100", 989.4e12, 79 * GIB, 3350e9, _NVLINK / 2, 1.755e9, 1, 1, 1, 1),
    "h200": Chip("NVIDIA H200", 989.4e12, 140 * GIB, 4800e9, _NVLINK / 2, 1.755e9, 1, 1, 1, 1),
    "a100": Chip("NVIDIA A100", 312e12, 79 * GIB, 2039e9, 150e9, 1.41e9, 1, 1, 1, 1),
}
SHARE = 0.6  # of peak that a step's products reach, taken from published runs of 7B to 13B


def lines(workload: Workload, name: str, price: float | None) -> list[str]:
    """The best layouts on paper, as lines that say so."""
    kind, _, number = name.partition("-")
    if not number.isdigit() or int(number) < 1:
        raise ConfigError(f"{name!r} is no number of GPUs.", "--topology", "write it as h100-64.")
    chips = int(number)
    chip = KINDS[kind]
    if chips > _NODE:
        chip = dataclasses.replace(chip, link_bandwidth=_NETWORK / 2)
    topology = Topology(name, chip, (chips,), name)
    found, looked_at, too_large = search.best(
        workload, topology, number=4, room=0.9, max_tensor=_NODE, max_context=1
    )
    said = [
        f"{chips} x {chip.kind}: ONLY ESTIMATED, nothing was compiled for GPUs; products at "
        f"{SHARE:.0%} of peak, {'network' if chips > _NODE else 'NVLink'} at "
        f"{2 * chip.link_bandwidth / 1e9:.0f} GB/s for each GPU",
        f"{looked_at} layouts; {too_large} should not fit",
    ]
    for one in found:
        seconds = one.seconds * 0.85 / SHARE  # the search counts products at 85 % of peak
        guess = from_times(
            one.workload, topology, seconds=seconds, compute=seconds, hbm_bytes=0.0, ici=0.0
        )
        mesh, money = one.workload.mesh, "" if price is None else f", ${guess.dollars(price):,.0f}"
        said.append(
            f"only estimated: data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}, remat "
            f"{one.workload.model.remat}, {one.workload.train.micro_batches} micro-batches: about "
            f"{format_gib(one.bytes)} of {format_gib(chip.hbm_bytes)}, {seconds:.2f} s a step, "
            f"{guess.tokens_per_second:,.0f} tokens/s, MFU {guess.mfu:.0%}, "
            f"{guess.chip_hours:,.0f} GPU hours{money}"
        )
    return said
