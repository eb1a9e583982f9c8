"""Selects the layouts to compile (mesh, remat policy, micro-batches) with an analytic estimate.

The estimate is rough and only selects layouts worth compiling: layouts that cannot fit are dropped,
and slow layouts are ranked last. The final table comes from the compiler.

Shapes: D hidden size, F FFN size, L layers, V vocabulary size.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from qwen_jax.config import MeshConfig
from qwen_jax.model import spec
from qwen_jax.plan.estimate import model_flops
from qwen_jax.plan.stages import Workload
from qwen_jax.plan.topologies import Chip, Topology

REMATS = ("none", "dots", "block")
# From compiled steps of the 7B model (benchmarks/results/plan.md): the fraction of peak that
# matmuls reach, and the bytes that other work reads and writes, per token, layer and unit of D.
MATMUL_PEAK, _TRAFFIC = 0.8, 550
# If shards of D are not multiples of 128, the compiler does not gather them: every device adds its
# shard to zeros. That sends twice the bytes and copies results more often.
_VECTOR, _NARROW = 128, 1.4


@dataclasses.dataclass(frozen=True)
class PaperEstimate:
    """A workload with a layout, and its estimated memory and step time."""

    workload: Workload
    bytes: float  # per chip
    seconds: float  # per step


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def with_layout(workload: Workload, mesh: MeshConfig, remat: str, micro: int) -> Workload:
    return dataclasses.replace(
        workload,
        mesh=mesh,
        model=dataclasses.replace(workload.model, remat=remat),
        train=dataclasses.replace(workload.train, micro_batches=micro),
    )


def layouts(
    workload: Workload,
    chips: int,
    *,
    max_tensor: int,
    max_context: int,
    mesh: MeshConfig | None = None,
    remat: str | None = None,
    micro: int | None = None,
) -> Iterator[Workload]:
    """Yields the workload with every layout: mesh, remat policy and number of micro-batches.

    Only layouts that divide the sizes are yielded. Arguments that are not None are fixed.
    """
    for one in [mesh] if mesh else meshes(workload, chips, max_tensor, max_context):
        copies = one.data * _fsdp(one)
        sizes = [
            workload.train.batch_size,
            workload.pretrain_sequences or workload.train.batch_size,
        ]
        if any(size % copies for size in sizes):
            continue
        splits = divisors(min(sizes) // copies)
        for number in [micro] if micro else [number for number in splits if number <= 32]:
            for policy in [remat] if remat else REMATS:
                yield with_layout(workload, one, policy, number)


def _fsdp(mesh: MeshConfig) -> int:
    assert mesh.fsdp is not None, "a layout to compile has a fixed fsdp"
    return mesh.fsdp


def meshes(
    workload: Workload, chips: int, max_tensor: int, max_context: int
) -> Iterator[MeshConfig]:
    """Yields every mesh of `chips` chips that divides the model's sizes."""
    model = workload.model
    for tensor, context in itertools.product(divisors(chips), divisors(chips)):
        if tensor > max_tensor or context > max_context or chips % (tensor * context):
            continue
        if model.num_heads % tensor or model.kv_heads % tensor or model.ffn_size % tensor:
            continue
        if model.vocab_size % tensor or (context > 1 and workload.sequence_length % (2 * context)):
            continue
        rest = chips // tensor // context
        for fsdp in divisors(rest):
            data = rest // fsdp
            # Replicas of the weights save gathers but cost memory; not worth it below 8 shards.
            if model.hidden_size % fsdp == 0 and (data == 1 or fsdp >= 8):
                yield MeshConfig(data, fsdp, tensor, context)


def paper_estimate(
    workload: Workload, chip: Chip, chips: int, *, matmul_peak: float = MATMUL_PEAK
) -> PaperEstimate:
    """Returns the estimated memory and time of a layout.

    Args:
      matmul_peak: share of the chip's peak that matmuls reach.
    """
    model, mesh, fsdp = workload.model, workload.mesh, _fsdp(workload.mesh)
    D, F, V, L = model.hidden_size, model.ffn_size, model.vocab_size, model.num_layers
    heads = (model.num_heads + 2 * model.kv_heads) * model.head_dim
    N = spec.count(model)
    models = 2 if workload.training_stage == "ppo" else 1
    shards = fsdp * mesh.tensor
    accumulator = 4 if workload.train.micro_batches > 1 else 0
    state = models * N * (12 + 4 + accumulator) / shards
    if workload.training_stage == "ppo":
        state += 2 * N * 2 / shards
    sequences = max(workload.sequences, workload.pretrain_sequences) / (mesh.data * fsdp)
    tokens = (
        sequences
        / workload.train.micro_batches
        * max(workload.sequence_length, model.context_length if workload.pretrain_sequences else 0)
        / mesh.context
    )
    kept = {"block": 2 * D + 2 * model.num_heads * model.head_dim / mesh.tensor}
    kept["dots"] = kept["block"] + 2 * D + 2 * (heads + 2 * F) / mesh.tensor
    kept["none"] = kept["dots"] + 12 * D + (4 * heads + 10 * F) / mesh.tensor
    layer = 12 * D + (6 * heads + 12 * F) / mesh.tensor  # backward pass of one layer
    head = (
        0
        if workload.training_stage == "reward_model"
        else (8 + 2) * D * V / mesh.tensor + 2.5 * 2**30
    )
    weights = 3 * 2 * (N - 2 * D * V) / L / mesh.tensor  # gathered weights of two layers
    memory = state + tokens * (L * kept[model.remat] + layer) + head + weights
    flops, _ = model_flops(workload)
    recomputed = {"none": 0.0, "dots": 0.0, "block": 0.3}[model.remat]
    seen = tokens * workload.train.micro_batches * models
    narrow = fsdp > 1 and D // fsdp % _VECTOR != 0
    traffic = _TRAFFIC * (_NARROW if narrow else 1.0)
    compute = (
        flops * (1 + recomputed) / (chips * chip.peak_flops * matmul_peak)
        + seen * L * traffic * D / mesh.tensor / chip.hbm_bandwidth
    )
    # Per micro-batch, weights are gathered twice in 2 bytes, and gradients are summed in 4 bytes in
    # both directions.
    gathered = workload.train.micro_batches * models * N / mesh.tensor * (16 if narrow else 12)
    network = gathered / (2 * chip.dimensions * chip.link_bandwidth) if fsdp > 1 else 0.0
    # A small mesh axis uses the links of only one torus dimension.
    if mesh.data > 1:
        network += 8 * models * N / shards / (2 * chip.link_bandwidth)
    if mesh.tensor > 1:
        sums = seen * L * D * 2 * 8 * (mesh.tensor - 1) / mesh.tensor
        network += sums / (2 * chip.link_bandwidth)
    if mesh.context > 1:  # keys and values are sent three times in 2 bytes, gradients in 4
        ring = seen * L * 2 * model.kv_heads * model.head_dim / mesh.tensor
        network += ring * 8 * (mesh.context - 1) / chip.link_bandwidth
    return PaperEstimate(workload, memory, compute + network)


def best(
    workload: Workload,
    topology: Topology,
    *,
    number: int,
    memory_fraction: float = 1.0,
    matmul_peak: float = MATMUL_PEAK,
    **limits,
) -> tuple[list[PaperEstimate], int, int]:
    """Returns the layouts with the lowest estimated time among those estimated to fit.

    Args:
      number: maximum number of layouts; at most two per mesh are returned.
      memory_fraction: fraction of a chip's memory that the estimate may use.
      matmul_peak: as in `paper_estimate`.

    Returns:
      The layouts, the number considered, and the number estimated not to fit.
    """
    estimates = [
        paper_estimate(layout, topology.chip, topology.chips, matmul_peak=matmul_peak)
        for layout in layouts(workload, topology.chips, **limits)
    ]
    fit = [one for one in estimates if one.bytes <= memory_fraction * topology.chip.hbm_bytes]
    chosen, seen = [], {}
    for one in sorted(fit, key=lambda one: one.seconds):
        if seen.get(one.workload.mesh, 0) < 2:
            seen[one.workload.mesh] = seen.get(one.workload.mesh, 0) + 1
            chosen.append(one)
    return chosen[:number], len(estimates), len(estimates) - len(fit)
