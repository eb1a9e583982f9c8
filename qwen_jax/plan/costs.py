"""What a compiled step takes on one chip: work by kind, memory traffic, collectives, their time.

Time of an instruction: the cycles that the compiler's own cost model gives it; where it gives none,
its bytes at the memory's bandwidth. Our attention kernels: bundles of their compiled inner tiles
(benchmarks/results/attention_tpu_utilization.md). Nothing of this was measured on a TPU.

Overlap, loop body by loop body: a collective that is started and awaited runs beside everything
else of the same body, so a body takes the longer of the two; one that is a single instruction makes
the chip wait, and is added. v5e has no cores for collectives: a gather is started, products carry
it on in the background of their own work, and it is awaited; it counts once, and so does each
product.
"""

import collections
import dataclasses
import math
import re

from qwen_jax.plan import hlo, products
from qwen_jax.plan.network import Network, first_group, pairs_of
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
_ASYNCHRONOUS = ("-start", "-update", "-done")  # copies and slices that are fetched beside work
# What can have a collective inside: a call that is started runs on the sparse cores.
_INSIDE = ("fusion", "async-start", "call-start", "custom-call-start")
_CALLED = ("calls", "to_apply", "called_computations")
# Names of the parts of a gather that products carry on: fusions that start and await it, and the
# computations of these products, which pass its buffers through.
_STARTED, _AWAITED, _CARRYING = (
    "async-collective-start",
    "async-collective-done",
    "async_collective_fusion",
)
# Bundles of 1024 x 1024 scores of one head of 128, bfloat16: forward without a mask and with one,
# backward without and with.
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
    group: int  # devices that take part together
    size: int  # bytes of what is whole: see Network.seconds; of one message of a permute
    times: int  # in a step
    seconds: float  # of all these times
    hidden: bool  # runs beside other work
    source: str  # what the model calls it

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a step."""
        if self.kind == "collective-permute":
            return float(self.size * self.times)
        share = self.size * (self.group - 1) / self.group
        return share * self.times * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass
class Costs:
    """Of one step, on one chip."""

    seconds: float = 0.0  # with overlap as it is said above
    work: dict[str, float] = dataclasses.field(  # kind: seconds
        default_factory=lambda: collections.defaultdict(float)
    )
    hbm_bytes: float = 0.0
    flops: float = 0.0  # of products and attention, what is computed twice included
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)  # loops of unknown length

    @property
    def compute(self) -> float:
        return sum(self.work.values())

    @property
    def ici(self) -> float:
        return sum(collective.seconds for collective in self.collectives)

    def merged(self) -> list[tuple[str, int, float, float, float]]:
        """(kind, group, bytes that a chip sends, seconds, seconds not hidden), largest first."""
        found = {}
        for one in self.collectives:
            row = found.setdefault((one.kind, one.group), [0.0, 0.0, 0.0])
            row[0] += one.sent
            row[1] += one.seconds
            row[2] += 0.0 if one.hidden else one.seconds
        return sorted(((*key, *row) for key, row in found.items()), key=lambda row: -row[3])


def read(text: str, chip: Chip, network: Network) -> Costs:
    """The Costs of `compiled.as_text()`."""
    reader = _Reader(hlo.parse(text), chip, network)
    costs = reader.costs
    costs.seconds = reader.scope(reader.program.entry, 1)
    return costs


class _Reader:
    def __init__(self, program: hlo.Program, chip: Chip, network: Network):
        self.program, self.chip, self.network = program, chip, network
        self.costs = Costs()

    def scope(self, name: str, times: int) -> float:
        """Seconds of one run of a computation that runs `times` times in a step."""
        body = self.program.computations[name]
        work = beside = waited = 0.0
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
                if self.multiplied(instruction, body):  # beside its collective
                    work += self.run(instruction, body, times)
                seconds = self.collect(instruction, kind, body, times)
                if _starts(instruction):
                    beside += seconds
                else:
                    waited += seconds
            else:
                work += self.run(instruction, body, times)
        return max(work, beside) + waited

    def collect(self, instruction, kind: str, body, times: int) -> float:
        """Seconds of a collective, once."""
        inner = instruction
        if instruction.opcode in _INSIDE:
            inside = self.program.computations[instruction.called(*_CALLED)[0]]
            inner = next(i for i in inside.values() if i.opcode.startswith(kind))
            body = inside
        operands = sum(body[name].bytes for name in inner.operands if name in body)
        if kind == "collective-permute":
            size, pairs = operands, pairs_of(inner.rest)
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
        """Seconds of an instruction, once."""
        if (
            instruction.opcode in _FREE
            or instruction.opcode.endswith(_ASYNCHRONOUS)
            or instruction.name.startswith(_AWAITED)
            or "AllocateBuffer" in instruction.rest
        ):
            return 0.0
        moved = self.traffic(instruction, body)
        kind, seconds = "other", moved / self.chip.hbm_bandwidth
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        if 'custom_call_target="tpu_custom_call"' in instruction.rest:
            kind = "attention " + ("backward" if "backward" in instruction.name else "forward")
            cost, flops = self.kernel(instruction, body)
            seconds = max(seconds, cost)
            self.costs.flops += flops * times
        elif cycles and int(cycles[1]) < 1e15:
            seconds = int(cycles[1]) / self.chip.clock
            kind = "elementwise"
        elif instruction.opcode == "copy":
            kind = "copies"
        flops = self.multiplied(instruction, body)
        if flops:
            kind = "products"
            self.costs.flops += flops * times
        self.costs.work[kind] += seconds * times
        self.costs.hbm_bytes += moved * times
        return seconds

    def multiplied(self, instruction, body) -> float:
        """FLOPs of the matrix products in an instruction, once."""
        if instruction.opcode in ("convolution", "dot"):
            shapes = tuple(_dimensions(body[name].shape) for name in instruction.operands)
            return products.flops(instruction.rest, shapes, _dimensions(instruction.shape))
        if instruction.opcode != "fusion":
            return 0.0
        insides = [self.program.computations[name] for name in instruction.called("calls")]
        return sum(
            self.multiplied(inner, inside) for inside in insides for inner in inside.values()
        )

    def kernel(self, instruction, body) -> tuple[float, float]:
        """Seconds and FLOPs of our attention, causal: half of its square of tiles, those of the
        diagonal with a mask."""
        query = next(
            shape
            for shape in (
                _dimensions(body[name].shape) for name in instruction.operands if name in body
            )
            if len(shape) == 4 and shape[2] > 1
        )
        rows, heads, length, width = query
        backward = "backward" in instruction.name
        whole, masked = _BUNDLES[self.chip.kind][2 * backward :][:2]
        side = length / _TILE
        tiles = whole * side * max(side - 1, 0) / 2 + masked * min(side, side**2)
        bundles = rows * heads * tiles * math.ceil(width / 128)
        flops = rows * heads * length**2 / 2 * width * (10 if backward else 4)
        return bundles / self.chip.cores / self.chip.clock, flops

    def traffic(self, instruction, body) -> float:
        """Bytes that it reads and writes in HBM; of what it slices, the slice alone."""
        called = instruction.called("calls") if instruction.opcode == "fusion" else []
        inside = self.program.computations[called[0]] if called else {}
        passed = _passed_through(instruction) if _carries(instruction) else {}
        read = 0
        for place, name in enumerate(instruction.operands):
            if name not in body or body[name].opcode in ("constant",) or place in passed.values():
                continue
            read += self.sliced(inside, place, _in_hbm(body[name].shape))
        if passed:
            return float(
                read
                + sum(
                    _in_hbm(part)
                    for place, part in enumerate(hlo.parts(instruction.shape))
                    if place not in passed
                )
            )
        written = _in_hbm(instruction.shape)
        update = [
            inner
            for inner in inside.values()
            if inner.opcode == "dynamic-update-slice"
            and array_equal(inner.shape, instruction.shape)
        ]
        if instruction.opcode == "dynamic-update-slice":
            inside, update = body, [instruction]
        elif instruction.opcode == "dynamic-slice":
            return 2.0 * written
        if update:
            piece = inside.get(update[0].operands[1])
            size = piece.bytes if piece is not None else written
            return float(read - written + 2 * size) if read >= written else 2.0 * size
        return float(read + written)

    def sliced(self, inside: dict, place: int, size: int) -> int:
        """Bytes that a fusion reads of its operand number `place`: all, or the slices it takes."""
        name = next(
            (
                i.name
                for i in inside.values()
                if i.opcode == "parameter" and i.operands == (str(place),)
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
                    self.sliced(called, at, size)
                    for at, operand in enumerate(user.operands)
                    if operand == name
                )
            else:
                return size
        return min(size, read) if users else size


def array_equal(one: str, other: str) -> bool:
    return _dimensions(one) == _dimensions(other)


def _dimensions(shape: str) -> tuple[int, ...]:
    match = re.search(r"\[([\d,]*)\]", shape)
    return tuple(int(size) for size in match[1].split(",") if size) if match else ()


def _in_hbm(shape: str) -> int:
    """Bytes of the arrays that do not lie in VMEM (memory space 1) or scalar memory."""
    kept = re.sub(r"\w+\[[\d,]*\]\{[^}]*S\(\d+\)[^}]*\}", "", shape)
    return sum(hlo.array_bytes(kept))


def _collective(instruction, program: hlo.Program) -> str | None:
    """Which collective an instruction is or has inside; None for others, and for what carries on or
    awaits one."""
    if (
        instruction.opcode.endswith("-done")
        or instruction.name.startswith(_AWAITED)
        or _carries(instruction)
    ):
        return None
    for kind in COLLECTIVES:
        if instruction.opcode in (kind, kind + "-start"):
            return kind
    if instruction.opcode in _INSIDE:
        for name in instruction.called(*_CALLED):
            for inner in program.computations.get(name, {}).values():
                for kind in COLLECTIVES:
                    if inner.opcode in (kind, kind + "-start"):
                        return kind
    return None


def _starts(instruction) -> bool:
    return instruction.opcode.endswith("-start") or instruction.name.startswith(_STARTED)


def _carries(instruction) -> bool:
    return any(name.startswith(_CARRYING) for name in instruction.called("calls"))


def _passed_through(instruction) -> dict[int, int]:
    """{place in the result: the operand that it is}."""
    return {
        int(place or 0): int(operand)
        for place, operand in re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", instruction.rest)
    }
