"""What was found of each compiled layout: a row of a table, and the details of one."""

import dataclasses

from qwen_jax.config import MeshConfig
from qwen_jax.plan.estimate import Estimate, flops_found
from qwen_jax.plan.program import Result
from qwen_jax.plan.stages import Workload
from qwen_jax.plan.topologies import Topology
from qwen_jax.utils.format import format_gib

HEADER = (
    "| mesh | remat | micro-batches | memory of a chip: weights + optimizer + workspace | "
    "step, s (least to most) | compute / network, s | tokens/s | MFU / noncausal | chip hours |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
_LEAST_FOUND = 0.97  # of formula A's FLOPs, in a program that was read whole


@dataclasses.dataclass(frozen=True)
class Planned:
    """A layout on a slice, what the compiler says of it, and what it would cost."""

    workload: Workload
    topology: Topology
    result: Result
    estimate: Estimate | None  # None: it was not compiled

    @property
    def fits(self) -> bool:
        return self.result.total + self.result.held <= self.topology.chip.hbm_bytes

    @property
    def flops_found(self) -> float:
        return flops_found(self.result, self.workload, self.topology)

    @property
    def whole(self) -> bool:
        """Whether all of the model's products were found in the program, if there is one."""
        return bool(self.result.error) or self.flops_found >= _LEAST_FOUND

    @property
    def rank(self) -> tuple[bool, float]:
        """First what fits and was read whole, the fastest before the others."""
        doubtful = self.estimate is None or not self.fits or not self.whole
        return doubtful, self.estimate.seconds if self.estimate else 0.0

    def record(self) -> dict:
        """For JSON."""
        return {
            "mesh": dataclasses.asdict(self.workload.mesh),
            "remat": self.workload.model.remat,
            "micro_batches": self.workload.train.micro_batches,
            "result": dataclasses.asdict(self.result),
            "estimate": self.estimate and dataclasses.asdict(self.estimate),
        }


def line(planned: Planned, price: float | None) -> str:
    """A row of the table.

    Args:
      price: of a chip hour; None: no money.
    """
    workload, result, found = planned.workload, planned.result, planned.estimate
    start = (
        f"| {mesh_name(workload.mesh)} | {workload.model.remat} | {workload.train.micro_batches} | "
    )
    if found is None:
        return start + f"{result.error} | | | | | |"
    room = planned.topology.chip.hbm_bytes
    fits = "fits" if planned.fits else "DOES NOT FIT"
    held = f" + held {format_gib(result.held)}" if result.held else ""
    money = "" if price is None else f", ${found.dollars(price):,.0f}"
    network = sum(row[3] for row in result.collectives)
    return (
        start + f"{format_gib(result.total)} of {format_gib(room)}, {fits}: "
        f"{format_gib(result.parameters)} + {format_gib(result.optimizer)} + "
        f"{format_gib(result.workspace)}{held} | {found.seconds:.3f} "
        f"({found.least:.3f} to {found.most:.3f}) | {sum(result.work.values()):.3f} / "
        f"{network:.3f} | {found.tokens_per_second:,.0f} | {found.mfu:.1%} / "
        f"{found.mfu_noncausal:.1%} | {found.chip_hours:,.0f}{money} |"
    )


def mesh_name(mesh: MeshConfig) -> str:
    named = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor, "context": mesh.context}
    return " x ".join(f"{name} {size}" for name, size in named.items() if size > 1) or "one chip"


def details(result: Result) -> list[str]:
    """Where the time of one layout goes."""
    total = sum(result.work.values()) or 1.0
    work = sorted(result.work.items(), key=lambda item: -item[1])
    lines = [
        "work: "
        + ", ".join(f"{kind} {seconds:.3f} s ({seconds / total:.0%})" for kind, seconds in work),
        f"a chip: {result.flops / 1e12:,.1f} TFLOP in products and attention, recomputation "
        f"included; {result.hbm_bytes / 1e9:,.0f} GB to and from memory",
        "| collective | group | GB sent by a chip | s | of it not hidden |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {group} | {sent / 1e9:.2f} | {seconds:.4f} | {waited:.4f} |"
        for kind, group, sent, seconds, waited in result.collectives
        if sent > 1e5
    ]
    if result.unknown:
        lines.append(f"loops of unknown length, counted once: {', '.join(result.unknown)}")
    return lines
