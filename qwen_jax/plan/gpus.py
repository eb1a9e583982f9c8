"""Analytic estimates for GPUs. Nothing is compiled, and every line says "only estimated".

XLA can compile for an absent GPU but reports no costs. Memory is computed from the arrays that a
step holds, time from a stated fraction of the vendor's peak.
"""

import dataclasses
from typing import Any

from qwen_jax.errors import ConfigError
from qwen_jax.plan import search
from qwen_jax.plan.estimate import from_times
from qwen_jax.plan.stages import Workload
from qwen_jax.plan.topologies import GIB, Chip, Topology
from qwen_jax.utils.format import format_gib

# Bandwidth per GPU, both directions: NVLink within a node of 8 GPUs, else a 50 GB/s network.
_NVLINK, _NETWORK, _NODE = 450e9, 50e9, 8
KINDS = {
    "h100": Chip("NVIDIA H100", 989.4e12, 79 * GIB, 3350e9, _NVLINK / 2, 1.755e9, 1, 1, 1, 1),
    "h200": Chip("NVIDIA H200", 989.4e12, 140 * GIB, 4800e9, _NVLINK / 2, 1.755e9, 1, 1, 1, 1),
    "a100": Chip("NVIDIA A100", 312e12, 79 * GIB, 2039e9, 150e9, 1.41e9, 1, 1, 1, 1),
}
SHARE = 0.6  # fraction of peak that matmuls reach, from published runs of 7B to 13B models


def lines(workload: Workload, name: str, price: float | None) -> list[str]:
    """Returns the best layouts by the analytic estimate, as lines of text.

    Args:
      name: GPU kind and count, such as h100-64.
      price: dollars per GPU hour; None: no cost is shown.

    Raises:
      ConfigError: the number of GPUs is invalid.
    """
    kind, _, number = name.partition("-")
    if not number.isdigit() or int(number) < 1:
        raise ConfigError(
            f"{name!r} has no valid number of GPUs.",
            "--topology",
            "use a name such as h100-64.",
        )
    chips = int(number)
    chip = KINDS[kind]
    if chips > _NODE:
        chip = dataclasses.replace(chip, link_bandwidth=_NETWORK / 2)
    topology = Topology(name, chip, (chips,), name)
    limits: dict[str, Any] = {"max_tensor": _NODE, "max_context": 1}
    layouts, considered, too_large = search.best(
        workload, topology, number=4, memory_fraction=0.9, matmul_peak=SHARE, **limits
    )
    text = [
        f"{chips} x {chip.kind}: ONLY ESTIMATED, nothing was compiled for GPUs; matmuls at "
        f"{SHARE:.0%} of peak, {'network' if chips > _NODE else 'NVLink'} at "
        f"{2 * chip.link_bandwidth / 1e9:.0f} GB/s per GPU",
        f"{considered} layouts considered; {too_large} should not fit",
    ]
    if considered and not layouts:
        sizes = [
            search.paper_estimate(each, chip, chips).bytes
            for each in search.layouts(workload, chips, **limits)
        ]
        text.append(
            f"only estimated: the smallest layout needs about {format_gib(min(sizes))} per GPU, "
            f"more than 90% of {format_gib(chip.hbm_bytes)}; use more GPUs, fewer --batch_tokens, "
            "or train adapters (--lora.rank), which this plan does not cover"
        )
    for one in layouts:
        seconds = one.seconds
        guess = from_times(
            one.workload, topology, seconds=seconds, compute=seconds, hbm_bytes=0.0, ici=0.0
        )
        mesh, cost = one.workload.mesh, "" if price is None else f", ${guess.dollars(price):,.0f}"
        text.append(
            f"only estimated: data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}, remat "
            f"{one.workload.model.remat}, {one.workload.train.micro_batches} micro-batches: about "
            f"{format_gib(one.bytes)} of {format_gib(chip.hbm_bytes)}, {seconds:.2f} s per step, "
            f"{guess.tokens_per_second:,.0f} tokens/s, MFU {guess.mfu:.0%}, "
            f"{guess.chip_hours:,.0f} GPU hours{cost}"
        )
    return text
