"""Which layouts to compile: every mesh, remat policy and number of micro-batches, by a paper
estimate.

The estimate is rough, and only decides what is worth compiling: what cannot fit is left out, what
is slow comes last. What is printed in the end comes from the compiler.

D model, F ffn, L layers, V vocabulary; N heads of size H.
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
# What compiled steps of 7B were like (benchmarks/results/plan.md): the share of peak that products
# reach, and the bytes that all else reads and writes, for a token, a layer and one of D.
_PRODUCTS, _TRAFFIC = 0.8, 550
# Weights in pieces of D that are no whole vectors of 128 are not gathered: every device adds its
# piece to zeros, which sends twice the bytes, and what is computed with them is copied more often.
_VECTOR, _NARROW = 128, 1.4


@dataclasses.dataclass(frozen=True)
class Paper:
    """A workload with a layout, and what it should take on paper."""

    workload: Workload
    bytes: float  # of a chip's memory
    seconds: float  # of a step


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def laid_out(workload: Workload, mesh: MeshConfig, remat: str, micro: int) -> Workload:
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
    """The workload on every mesh, with every remat policy and number of micro-batches that divide
    its sizes; or with those that are given."""
    for one in [mesh] if mesh else meshes(workload, chips, max_tensor, max_context):
        copies = one.data * _fsdp(one)
        rows = [workload.train.batch_size, workload.pretrain_rows or workload.train.batch_size]
        if any(number % copies for number in rows):
            continue
        pieces = divisors(min(rows) // copies)
        for number in [micro] if micro else [number for number in pieces if number <= 32]:
            for policy in [remat] if remat else REMATS:
                yield laid_out(workload, one, policy, number)


def _fsdp(mesh: MeshConfig) -> int:
    assert mesh.fsdp is not None, "a layout to compile says how many pieces"
    return mesh.fsdp


def meshes(
    workload: Workload, chips: int, max_tensor: int, max_context: int
) -> Iterator[MeshConfig]:
    """Every mesh of so many chips that divides the model's sizes."""
    model = workload.model
    for tensor, context in itertools.product(divisors(chips), divisors(chips)):
        if tensor > max_tensor or context > max_context or chips % (tensor * context):
            continue
        if model.num_heads % tensor or model.kv_heads % tensor or model.ffn_size % tensor:
            continue
        if model.vocab_size % tensor or (context > 1 and workload.row_tokens % (2 * context)):
            continue
        rest = chips // tensor // context
        for fsdp in divisors(rest):
            data = rest // fsdp
            # Copies of the weights save gathers and cost memory: fewer than 8 pieces do not pay.
            if model.hidden_size % fsdp == 0 and (data == 1 or fsdp >= 8):
                yield MeshConfig(data, fsdp, tensor, context)


def paper(workload: Workload, chip: Chip, chips: int) -> Paper:
    """What a layout should take."""
    model, mesh, fsdp = workload.model, workload.mesh, _fsdp(workload.mesh)
    D, F, V, L = model.hidden_size, model.ffn_size, model.vocab_size, model.num_layers
    heads = (model.num_heads + 2 * model.kv_heads) * model.head_dim
    N = spec.count(model)
    models = 2 if workload.stage == "ppo" else 1
    pieces = fsdp * mesh.tensor
    accumulator = 4 if workload.train.micro_batches > 1 else 0
    state = models * N * (12 + 4 + accumulator) / pieces
    if workload.stage == "ppo":
        state += 2 * N * 2 / pieces
    rows = max(workload.rows, workload.pretrain_rows) / (mesh.data * fsdp)
    tokens = (
        rows
        / workload.train.micro_batches
        * max(workload.row_tokens, model.context_length if workload.pretrain_rows else 0)
        / mesh.context
    )
    kept = {"block": 2 * D + 2 * model.num_heads * model.head_dim / mesh.tensor}
    kept["dots"] = kept["block"] + 2 * D + 2 * (heads + 2 * F) / mesh.tensor
    kept["none"] = kept["dots"] + 12 * D + (4 * heads + 10 * F) / mesh.tensor
    layer = 12 * D + (6 * heads + 12 * F) / mesh.tensor  # one layer's backward pass
    head = 0 if workload.stage == "reward_model" else (8 + 2) * D * V / mesh.tensor + 2.5 * 2**30
    weights = 3 * 2 * (N - 2 * D * V) / L / mesh.tensor  # gathered, two layers at a time
    memory = state + tokens * (L * kept[model.remat] + layer) + head + weights
    a, _ = model_flops(workload)
    again = {"none": 0.0, "dots": 0.0, "block": 0.3}[model.remat]
    seen = tokens * workload.train.micro_batches * models
    narrow = fsdp > 1 and D // fsdp % _VECTOR != 0
    traffic = _TRAFFIC * (_NARROW if narrow else 1.0)
    compute = (
        a * (1 + again) / (chips * chip.peak_flops * _PRODUCTS)
        + seen * L * traffic * D / mesh.tensor / chip.hbm_bandwidth
    )
    # Weights are gathered twice in 2 bytes and their gradients summed in 4, there and back, for
    # every micro-batch.
    gathered = workload.train.micro_batches * models * N / mesh.tensor * (16 if narrow else 12)
    network = gathered / (2 * chip.dimensions * chip.link_bandwidth) if fsdp > 1 else 0.0
    # A mesh axis of few devices has the links of one side of the torus for itself.
    if mesh.data > 1:
        network += 8 * models * N / pieces / (2 * chip.link_bandwidth)
    if mesh.tensor > 1:
        sums = seen * L * D * 2 * 8 * (mesh.tensor - 1) / mesh.tensor
        network += sums / (2 * chip.link_bandwidth)
    if mesh.context > 1:  # keys and values in 2 bytes three times, their gradients in 4
        ring = seen * L * 2 * model.kv_heads * model.head_dim / mesh.tensor
        network += ring * 8 * (mesh.context - 1) / chip.link_bandwidth
    return Paper(workload, memory, compute + network)


def best(
    workload: Workload, topology: Topology, *, number: int, room: float = 1.0, **limits
) -> tuple[list[Paper], int, int]:
    """The layouts that should be fastest of those that should fit.

    Args:
      number: of layouts; at most two of a mesh.
      room: of a chip's memory that the paper estimate may fill.

    Returns:
      them, how many were looked at, and how many of these should not fit.
    """
    found = [
        paper(layout, topology.chip, topology.chips)
        for layout in layouts(workload, topology.chips, **limits)
    ]
    fit = [one for one in found if one.bytes <= room * topology.chip.hbm_bytes]
    chosen, seen = [], {}
    for one in sorted(fit, key=lambda one: one.seconds):
        if seen.get(one.workload.mesh, 0) < 2:
            seen[one.workload.mesh] = seen.get(one.workload.mesh, 0) + 1
            chosen.append(one)
    return chosen[:number], len(found), len(found) - len(fit)
