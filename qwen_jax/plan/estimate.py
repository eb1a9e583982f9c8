"""Turns step costs into run estimates: time, tokens per second, MFU, chip hours.

MFU counts 6 N + 6 L T N_heads H FLOPs per token (causal attention counted once). Noncausal MFU
counts 6 N + 12 L T N_heads H (the full square); see telemetry.metrics.flops_per_token. Token counts
of the report: 2.4, Table 1.
"""

import dataclasses

from qwen_jax.plan.program import Result
from qwen_jax.plan.stages import Workload
from qwen_jax.plan.topologies import Chip, Topology
from qwen_jax.train.telemetry import metrics


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimate of a step on a TPU slice; no value was measured on a TPU."""

    seconds: float  # per step, with the overlap that plan.costs models
    min_seconds: float  # perfect overlap: the maximum of compute, memory and network time
    max_seconds: float  # no overlap: the sum of compute and network time
    tokens_per_second: float  # for the full slice
    mfu: float
    mfu_noncausal: float
    chip_hours: float  # for the full run

    def dollars(self, price: float) -> float:
        return self.chip_hours * price


def tokens_per_step(workload: Workload) -> int:
    """Returns the tokens processed per step, including PPO's pretraining sequences."""
    return (
        workload.sequences * workload.sequence_length
        + workload.pretrain_sequences * workload.model.context_length
    )


def model_flops(workload: Workload) -> tuple[float, float]:
    """Returns model FLOPs per step: with causal attention counted once, and with the full square.

    A PPO step trains two models on its rollout and one model on its pretraining sequences.
    """
    at_length = dataclasses.replace(workload.model, context_length=workload.sequence_length)
    causal, noncausal = metrics.flops_per_token(at_length)
    head = 6.0 * workload.model.vocab_size * workload.model.hidden_size
    tokens = workload.sequences * workload.sequence_length
    if workload.training_stage == "pretrain":
        return tokens * causal, tokens * noncausal
    no_head = 0.0 if workload.model.tie_embeddings else head
    if workload.training_stage == "reward_model":
        return tokens * (causal - no_head), tokens * (noncausal - no_head)
    pretrain_tokens = workload.pretrain_sequences * workload.model.context_length
    pretrain_causal, pretrain_noncausal = metrics.flops_per_token(workload.model)
    updates = workload.ppo.epochs
    return (
        updates * (tokens * (causal + (causal - no_head)) + pretrain_tokens * pretrain_causal),
        updates
        * (tokens * (noncausal + (noncausal - no_head)) + pretrain_tokens * pretrain_noncausal),
    )


def estimate(result: Result, workload: Workload, topology: Topology) -> Estimate:
    """Returns the Estimate of a compiled step."""
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
    """Returns the Estimate of a step with the given times."""
    chip: Chip = topology.chip
    peak = chip.peak_flops * topology.chips
    causal, noncausal = model_flops(workload)
    return Estimate(
        seconds=seconds,
        min_seconds=max(causal / peak, hbm_bytes / chip.hbm_bandwidth, ici),
        max_seconds=compute + ici,
        tokens_per_second=tokens_per_step(workload) / seconds,
        mfu=causal / seconds / peak,
        mfu_noncausal=noncausal / seconds / peak,
        chip_hours=workload.train.num_steps * seconds * topology.chips / 3600,
    )


def parsed_flops_ratio(result: Result, workload: Workload, topology: Topology) -> float:
    """Returns FLOPs found in the compiled program / model FLOPs: at least 1 if fully parsed."""
    return result.flops * topology.chips / model_flops(workload)[0]
