"""Formats the table of compiled layouts, and the details of one layout."""

import dataclasses

from qwen_jax.config import MeshConfig
from qwen_jax.plan.estimate import Estimate, parsed_flops_ratio
from qwen_jax.plan.program import Result
from qwen_jax.plan.stages import Workload
from qwen_jax.plan.topologies import Topology
from qwen_jax.utils.format import format_gib

HEADER = (
    "| mesh | remat | micro-batches | memory per chip: weights + optimizer + workspace | "
    "step, s (min to max) | compute / network, s | tokens/s | MFU / noncausal | chip hours |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
_MIN_PARSED_RATIO = 0.97  # minimum of parsed / model FLOPs in a fully parsed program


@dataclasses.dataclass(frozen=True)
class PlannedLayout:
    """A layout on a slice, with its compilation result and estimate."""

    workload: Workload
    topology: Topology
    result: Result
    estimate: Estimate | None  # None: compilation failed

    @property
    def fits(self) -> bool:
        return self.result.total + self.result.frozen <= self.topology.chip.hbm_bytes

    @property
    def parsed_flops_ratio(self) -> float:
        return parsed_flops_ratio(self.result, self.workload, self.topology)

    @property
    def fully_parsed(self) -> bool:
        """Whether the program text contains all model matmuls; True if compilation failed."""
        return bool(self.result.error) or self.parsed_flops_ratio >= _MIN_PARSED_RATIO

    @property
    def rank(self) -> tuple[bool, float]:
        """Sort key: layouts that fit and were fully parsed come first, ordered by time."""
        doubtful = self.estimate is None or not self.fits or not self.fully_parsed
        return doubtful, self.estimate.seconds if self.estimate else 0.0

    def record(self) -> dict:
        """Returns the JSON record."""
        return {
            "mesh": dataclasses.asdict(self.workload.mesh),
            "remat": self.workload.model.remat,
            "micro_batches": self.workload.train.micro_batches,
            "result": dataclasses.asdict(self.result),
            "estimate": self.estimate and dataclasses.asdict(self.estimate),
        }


def line(planned: PlannedLayout, price: float | None) -> str:
    """Returns a row of the table.

    Args:
      price: dollars per chip hour; None: no cost is shown.
    """
    workload, result, estimate = planned.workload, planned.result, planned.estimate
    start = (
        f"| {mesh_name(workload.mesh)} | {workload.model.remat} | {workload.train.micro_batches} | "
    )
    if estimate is None:
        return start + f"{result.error} | | | | | |"
    available = planned.topology.chip.hbm_bytes
    fits = "fits" if planned.fits else "DOES NOT FIT"
    frozen = f" + frozen {format_gib(result.frozen)}" if result.frozen else ""
    cost = "" if price is None else f", ${estimate.dollars(price):,.0f}"
    network = sum(row[3] for row in result.collectives)
    return (
        start + f"{format_gib(result.total)} of {format_gib(available)}, {fits}: "
        f"{format_gib(result.parameters)} + {format_gib(result.optimizer)} + "
        f"{format_gib(result.workspace)}{frozen} | {estimate.seconds:.3f} "
        f"({estimate.min_seconds:.3f} to {estimate.max_seconds:.3f}) | "
        f"{sum(result.work.values()):.3f} / {network:.3f} | {estimate.tokens_per_second:,.0f} | "
        f"{estimate.mfu:.1%} / {estimate.mfu_noncausal:.1%} | {estimate.chip_hours:,.0f}{cost} |"
    )


def mesh_name(mesh: MeshConfig) -> str:
    named = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor, "context": mesh.context}
    return " x ".join(f"{name} {size}" for name, size in named.items() if size > 1) or "one chip"


def details(result: Result) -> list[str]:
    """Returns lines with one layout's time by kind of work and by collective."""
    total = sum(result.work.values()) or 1.0
    work = sorted(result.work.items(), key=lambda item: -item[1])
    lines = [
        "work: "
        + ", ".join(f"{kind} {seconds:.3f} s ({seconds / total:.0%})" for kind, seconds in work),
        f"per chip: {result.flops / 1e12:,.1f} TFLOP in matmuls and attention, including "
        f"recomputation; {result.hbm_bytes / 1e9:,.0f} GB of memory traffic",
        "| collective | group | GB sent per chip | s | exposed, s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {group} | {sent / 1e9:.2f} | {seconds:.4f} | {exposed:.4f} |"
        for kind, group, sent, seconds, exposed in result.collectives
        if sent > 1e5
    ]
    if result.unknown:
        lines.append(f"loops without a known trip count, counted once: {', '.join(result.unknown)}")
    return lines
