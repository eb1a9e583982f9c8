"""Costs of a compiled step on one chip: work by kind, memory traffic, collectives, and time.

The time of an instruction is the cycle estimate of the compiler's cost model. Without an estimate,
it is the instruction's bytes divided by the memory bandwidth. The time of our attention kernels
comes from the bundles of their compiled inner tiles
(benchmarks/results/attention_tpu_utilization.md). No time was measured on a TPU.

Overlap is modeled per loop body. An asynchronous collective (start and done) overlaps with all
other work of the body; the body takes the longer of the two times. A synchronous collective (a
single instruction) blocks the chip, so its time is added. v5e has no cores for collectives: a
gather is started, matmul fusions advance it in the background, and it is awaited. The gather counts
once, and so does each matmul.
"""

import collections
import dataclasses
import math
import re

from qwen_jax.plan import hlo, matmuls
from qwen_jax.plan.network import Network, first_group, source_target_pairs
from qwen_jax.plan.topologies import Chip

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "iota",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "domain",
    "bitcast-convert",
    "get-dimension-size",
    "add-dependency",
}
_ASYNCHRONOUS = ("-start", "-update", "-done")  # suffixes of asynchronous copies and slices
# Opcodes that may wrap a collective; asynchronous calls run on the SparseCores.
_WRAPPERS = ("fusion", "async-start", "call-start", "custom-call-start")
_CALLED = ("calls", "to_apply", "called_computations")
# Name prefixes for a gather that matmul fusions advance: the fusions that start and await it, and
# the computations of the matmul fusions, which pass its buffers through.
_START_PREFIX, _DONE_PREFIX, _ADVANCING_PREFIX = (
    "async-collective-start",
    "async-collective-done",
    "async_collective_fusion",
)
# Bundles per tile of 1024 x 1024 scores of one head of width 128, bfloat16: forward without and
# with a mask, backward without and with a mask.
_BUNDLES = {
    "TPU v4": (4496, 7354, 9893, 12566),
    "TPU v5 lite": (4174, 4724, 9025, 9301),
    "TPU v5": (4025, 4733, 8805, 9093),
    "TPU v6 lite": (2512, 3342, 4747, 5536),
}
_TILE = 1024


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program."""

    kind: str
    group: int  # number of participating devices
    size: int  # bytes of the full array (see Network.seconds), or of one message of a permute
    times: int  # executions per step
    seconds: float  # total of all executions
    hidden: bool  # whether it overlaps with other work
    source: str  # op_name in the model code

    @property
    def sent(self) -> float:
        """Bytes sent per chip and step."""
        if self.kind == "collective-permute":
            return float(self.size * self.times)
        share = self.size * (self.group - 1) / self.group
        return share * self.times * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass
class Costs:
    """Costs of one step on one chip."""

    seconds: float = 0.0  # time of the step with overlap, as in the module docstring
    work: dict[str, float] = dataclasses.field(  # kind of work -> seconds
        default_factory=lambda: collections.defaultdict(float)
    )
    hbm_bytes: float = 0.0
    flops: float = 0.0  # FLOPs of matmuls and attention, including recomputation
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)  # loops without a known trip count

    @property
    def compute(self) -> float:
        return sum(self.work.values())

    @property
    def ici(self) -> float:
        return sum(collective.seconds for collective in self.collectives)

    def merged(self) -> list[tuple[str, int, float, float, float]]:
        """Returns (kind, group, bytes sent per chip, seconds, exposed seconds), largest first."""
        groups = {}
        for one in self.collectives:
            totals = groups.setdefault((one.kind, one.group), [0.0, 0.0, 0.0])
            totals[0] += one.sent
            totals[1] += one.seconds
            totals[2] += 0.0 if one.hidden else one.seconds
        return sorted(((*key, *totals) for key, totals in groups.items()), key=lambda row: -row[3])


def read(text: str, chip: Chip, network: Network) -> Costs:
    """Returns the Costs of `compiled.as_text()`."""
    reader = _Reader(hlo.parse(text), chip, network)
    costs = reader.costs
    costs.seconds = reader.scope(reader.program.entry, 1)
    return costs


class _Reader:
    def __init__(self, program: hlo.Program, chip: Chip, network: Network):
        self.program, self.chip, self.network = program, chip, network
        self.costs = Costs()

    def scope(self, name: str, times: int) -> float:
        """Returns the seconds of one execution of a computation; it runs `times` times per step."""
        body = self.program.computations[name]
        work = overlapped = blocking = 0.0
        for instruction in body.values():
            kind = _collective(instruction, self.program)
            if instruction.opcode == "while":
                trips = self.program.trips(instruction)
                if trips is None:
                    self.costs.unknown.append(f"{instruction.name} ({instruction.source})")
                    trips = 1
                work += trips * self.scope(instruction.called("body")[0], times * trips)
            elif instruction.opcode in ("conditional", "call"):
                branches = instruction.called(
                    "branch_computations", "true_computation", "false_computation", "to_apply"
                )
                work += max(self.scope(branch, times) for branch in branches)
            elif kind is not None:
                if self.matmul_flops(instruction, body):  # a matmul fused with its collective
                    work += self.run(instruction, body, times)
                seconds = self.collect(instruction, kind, body, times)
                if _starts(instruction):
                    overlapped += seconds
                else:
                    blocking += seconds
            else:
                work += self.run(instruction, body, times)
        return max(work, overlapped) + blocking

    def collect(self, instruction, kind: str, body, times: int) -> float:
        """Records a collective and returns the seconds of one execution."""
        inner = instruction
        if instruction.opcode in _WRAPPERS:
            inside = self.program.computations[instruction.called(*_CALLED)[0]]
            inner = next(i for i in inside.values() if i.opcode.startswith(kind))
            body = inside
        operands = sum(body[name].bytes for name in inner.operands if name in body)
        if kind == "collective-permute":
            size, pairs = operands, source_target_pairs(inner.rest)
            seconds, group = self.network.permute_seconds(size, pairs), len(pairs)
        else:
            members = first_group(inner.rest, len(self.network.coords))
            group = len(members)
            size = operands * (group if kind == "all-gather" else 1)
            seconds = self.network.seconds(kind, size, members)
        self.costs.collectives.append(
            Collective(
                kind, group, size, times, seconds * times, _starts(instruction), inner.source
            )
        )
        return seconds

    def run(self, instruction, body, times: int) -> float:
        """Records an instruction and returns the seconds of one execution."""
        if (
            instruction.opcode in _FREE
            or instruction.opcode.endswith(_ASYNCHRONOUS)
            or instruction.name.startswith(_DONE_PREFIX)
            or "AllocateBuffer" in instruction.rest
        ):
            return 0.0
        moved = self.traffic(instruction, body)
        kind, seconds = "other", moved / self.chip.hbm_bandwidth
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        if 'custom_call_target="tpu_custom_call"' in instruction.rest:
            kind = "attention " + ("backward" if "backward" in instruction.name else "forward")
            cost, flops = self.attention_kernel(instruction, body)
            seconds = max(seconds, cost)
            self.costs.flops += flops * times
        elif cycles and int(cycles[1]) < 1e15:
            seconds = int(cycles[1]) / self.chip.clock
            kind = "elementwise"
        elif instruction.opcode == "copy":
            kind = "copies"
        flops = self.matmul_flops(instruction, body)
        if flops:
            kind = "matmuls"
            self.costs.flops += flops * times
        self.costs.work[kind] += seconds * times
        self.costs.hbm_bytes += moved * times
        return seconds

    def matmul_flops(self, instruction, body) -> float:
        """Returns the FLOPs of the matmuls in one execution of an instruction."""
        if instruction.opcode in ("convolution", "dot"):
            shapes = tuple(_dimensions(body[name].shape) for name in instruction.operands)
            return matmuls.flops(instruction.rest, shapes, _dimensions(instruction.shape))
        if instruction.opcode != "fusion":
            return 0.0
        insides = [self.program.computations[name] for name in instruction.called("calls")]
        return sum(
            self.matmul_flops(inner, inside) for inside in insides for inner in inside.values()
        )

    def attention_kernel(self, instruction, body) -> tuple[float, float]:
        """Returns the seconds and FLOPs of our causal attention kernel.

        It computes half of the square of tiles; tiles on the diagonal have a mask.
        """
        query = next(
            shape
            for shape in (
                _dimensions(body[name].shape) for name in instruction.operands if name in body
            )
            if len(shape) == 4 and shape[2] > 1
        )
        batch, heads, length, width = query
        backward = "backward" in instruction.name
        unmasked, masked = _BUNDLES[self.chip.kind][2 * backward :][:2]
        side = length / _TILE
        tiles = unmasked * side * max(side - 1, 0) / 2 + masked * min(side, side**2)
        bundles = batch * heads * tiles * math.ceil(width / 128)
        flops = batch * heads * length**2 / 2 * width * (10 if backward else 4)
        return bundles / self.chip.cores / self.chip.clock, flops

    def traffic(self, instruction, body) -> float:
        """Returns the bytes read and written in HBM; sliced operands count only their slice."""
        called = instruction.called("calls") if instruction.opcode == "fusion" else []
        inside = self.program.computations[called[0]] if called else {}
        aliased = _aliased_operands(instruction) if _advances(instruction) else {}
        read = 0
        for index, name in enumerate(instruction.operands):
            if name not in body or body[name].opcode in ("constant",) or index in aliased.values():
                continue
            read += self.operand_bytes(inside, index, _in_hbm(body[name].shape))
        if aliased:
            return float(
                read
                + sum(
                    _in_hbm(element)
                    for index, element in enumerate(hlo.tuple_elements(instruction.shape))
                    if index not in aliased
                )
            )
        written = _in_hbm(instruction.shape)
        update = [
            inner
            for inner in inside.values()
            if inner.opcode == "dynamic-update-slice"
            and _same_dimensions(inner.shape, instruction.shape)
        ]
        if instruction.opcode == "dynamic-update-slice":
            inside, update = body, [instruction]
        elif instruction.opcode == "dynamic-slice":
            return 2.0 * written
        if update:
            updated = inside.get(update[0].operands[1])
            size = updated.bytes if updated is not None else written
            return float(read - written + 2 * size) if read >= written else 2.0 * size
        return float(read + written)

    def operand_bytes(self, inside: dict, index: int, size: int) -> int:
        """Returns the bytes that a fusion reads from operand `index`: all, or only slices."""
        name = next(
            (
                i.name
                for i in inside.values()
                if i.opcode == "parameter" and i.operands == (str(index),)
            ),
            None,
        )
        read, users = 0, [i for i in inside.values() if name in i.operands]
        for user in users:
            if user.opcode == "dynamic-slice" and user.operands[0] == name:
                read += user.bytes
            elif user.opcode == "fusion":
                called = self.program.computations[user.called("calls")[0]]
                read += max(
                    self.operand_bytes(called, i, size)
                    for i, operand in enumerate(user.operands)
                    if operand == name
                )
            else:
                return size
        return min(size, read) if users else size


def _same_dimensions(one: str, other: str) -> bool:
    return _dimensions(one) == _dimensions(other)


def _dimensions(shape: str) -> tuple[int, ...]:
    match = re.search(r"\[([\d,]*)\]", shape)
    return tuple(int(size) for size in match[1].split(",") if size) if match else ()


def _in_hbm(shape: str) -> int:
    """Returns the bytes of the arrays outside VMEM (memory space 1) and scalar memory."""
    in_hbm = re.sub(r"\w+\[[\d,]*\]\{[^}]*S\(\d+\)[^}]*\}", "", shape)
    return sum(hlo.array_bytes(in_hbm))


def _collective(instruction, program: hlo.Program) -> str | None:
    """Returns the kind of collective that an instruction is or wraps.

    None for all other instructions, including those that advance or await a collective.
    """
    if (
        instruction.opcode.endswith("-done")
        or instruction.name.startswith(_DONE_PREFIX)
        or _advances(instruction)
    ):
        return None
    for kind in COLLECTIVES:
        if instruction.opcode in (kind, kind + "-start"):
            return kind
    if instruction.opcode in _WRAPPERS:
        for name in instruction.called(*_CALLED):
            for inner in program.computations.get(name, {}).values():
                for kind in COLLECTIVES:
                    if inner.opcode in (kind, kind + "-start"):
                        return kind
    return None


def _starts(instruction) -> bool:
    return instruction.opcode.endswith("-start") or instruction.name.startswith(_START_PREFIX)


def _advances(instruction) -> bool:
    return any(name.startswith(_ADVANCING_PREFIX) for name in instruction.called("calls"))


def _aliased_operands(instruction) -> dict[int, int]:
    """Returns {index in the result: index of the operand it aliases}."""
    return {
        int(index or 0): int(operand)
        for index, operand in re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", instruction.rest)
    }
