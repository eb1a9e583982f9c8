"""From what a compiled step takes to what a run costs: time, tokens a second, MFU, chip hours.

MFU A counts 6 N + 6 L T N_heads H for a token (causal attention once), B 6 N + 12 L T N_heads H
(all of the square); see telemetry.metrics.flops_per_token. Report tokens: 2.4, Table 1.
"""

import dataclasses

from qwen_jax.plan.program import Result
from qwen_jax.plan.stages import Workload
from qwen_jax.plan.topologies import Chip, Topology
from qwen_jax.train.telemetry import metrics


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of a step on a slice. Nothing here was measured on a TPU."""

    seconds: float  # of a step: with the overlap that plan.costs states
    least: float  # if everything ran beside everything: the largest of compute, memory, network
    most: float  # if nothing did: the sum of compute and network
    tokens_per_second: float  # of the slice
    mfu: float
    mfu_noncausal: float
    chip_hours: float  # of the whole run

    def dollars(self, price: float) -> float:
        return self.chip_hours * price


def tokens_per_step(workload: Workload) -> int:
    """Tokens that a step reads, all stages' rows included."""
    return (
        workload.rows * workload.row_tokens + workload.pretrain_rows * workload.model.context_length
    )


def model_flops(workload: Workload) -> tuple[float, float]:
    """Model FLOPs of a step by formulas A and B. A PPO step trains two models on its rollout and
    one on its pretraining rows."""
    at_rows = dataclasses.replace(workload.model, context_length=workload.row_tokens)
    a, b = metrics.flops_per_token(at_rows)
    head = 6.0 * workload.model.vocab_size * workload.model.hidden_size
    tokens = workload.rows * workload.row_tokens
    if workload.stage == "pretrain":
        return tokens * a, tokens * b
    without = 0.0 if workload.model.tie_embeddings else head
    if workload.stage == "reward_model":
        return tokens * (a - without), tokens * (b - without)
    rows = workload.pretrain_rows * workload.model.context_length
    pretrain_a, pretrain_b = metrics.flops_per_token(workload.model)
    updates = workload.ppo.epochs
    return (
        updates * (tokens * (a + (a - without)) + rows * pretrain_a),
        updates * (tokens * (b + (b - without)) + rows * pretrain_b),
    )


def estimate(result: Result, workload: Workload, topology: Topology) -> Estimate:
    """The Estimate of a compiled step."""
    return from_times(
        workload,
        topology,
        seconds=result.seconds,
        compute=sum(result.work.values()),
        hbm_bytes=result.hbm_bytes,
        ici=sum(row[3] for row in result.collectives),
    )


def from_times(
    workload: Workload,
    topology: Topology,
    *,
    seconds: float,
    compute: float,
    hbm_bytes: float,
    ici: float,
) -> Estimate:
    chip: Chip = topology.chip
    peak = chip.peak_flops * topology.chips
    a, b = model_flops(workload)
    return Estimate(
        seconds=seconds,
        least=max(a / peak, hbm_bytes / chip.hbm_bandwidth, ici),
        most=compute + ici,
        tokens_per_second=tokens_per_step(workload) / seconds,
        mfu=a / seconds / peak,
        mfu_noncausal=b / seconds / peak,
        chip_hours=workload.train.num_steps * seconds * topology.chips / 3600,
    )


def flops_found(result: Result, workload: Workload, topology: Topology) -> float:
    """FLOPs read from the compiled program over those of formula A: 1 or more, if all was read."""
    return result.flops * topology.chips / model_flops(workload)[0]
