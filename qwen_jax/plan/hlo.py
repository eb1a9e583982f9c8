"""Parses compiled program text into computations, instructions and loop trip counts.

Only what the cost model needs is parsed: shapes, operands, called computations, loop bounds.
"""

import dataclasses
import functools
import math
import re

BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s4": 1,
    "u4": 1,
    "c64": 8,
}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLS = re.compile(
    r"(calls|to_apply|body|condition|called_computations|branch_computations|"
    r"true_computation|false_computation)=\{?([^\s,}]+(?:, ?%[^\s,}]+)*)\}?"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: one line of the program text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # text after the operands: attributes, metadata and backend config

    @property
    def arrays(self) -> list[int]:
        """Size in bytes of each array of the result."""
        return array_bytes(self.shape)

    @property
    def bytes(self) -> int:
        return sum(self.arrays)

    def called(self, *kinds: str) -> list[str]:
        """Returns the names of the computations that the given attributes call."""
        called = []
        for kind, names in _CALLS.findall(self.rest):
            if kind in kinds:
                called += [name.strip().lstrip("%") for name in names.split(",")]
        return called

    @property
    def source(self) -> str:
        """The op_name in the metadata, from the model code; empty without one."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""


def array_bytes(shape: str) -> list[int]:
    """Returns array sizes: "(f32[2,3]{1,0}, u32[])" -> [24, 4]; tokens and non-arrays count 0."""
    return [
        BYTES.get(kind, 0) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _ARRAY.findall(shape)
    ]


def tuple_elements(shape: str) -> list[str]:
    """Returns element shapes: "(f32[2,3]{1,0}, u32[])" -> ["f32[2,3]{1,0}", "u32[]"].

    An array has one element, itself.
    """
    return _split(shape[1:-1]) if shape.startswith("(") else [shape]


@dataclasses.dataclass
class Program:
    """An HLO module: computations by name, each a dict of instructions in execution order."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int | None:
        """Returns the trip count of a while loop; None if it cannot be determined."""
        known = re.search(r"known_trip_count\D+(\d+)", loop.rest)
        if known:
            return int(known[1])
        condition = self.computations[loop.called("condition")[0]]
        body = self.computations[loop.called("body")[0]]
        for compare in condition.values():
            if compare.opcode != "compare" or "direction=LT" not in compare.rest:
                continue
            counter, bound = (condition.get(name) for name in compare.operands)
            if counter is not None and bound is not None and bound.opcode == "constant":
                return -(-int(bound.operands[0]) // _stride(counter, body))
        return None

    @functools.cached_property
    def fused(self) -> set[str]:
        """The names of the computations that are the body of a fusion."""
        return {
            name
            for body in self.computations.values()
            for instruction in body.values()
            if instruction.opcode == "fusion"
            for name in instruction.called("calls")
        }


def _stride(counter: Instruction, body: dict[str, Instruction]) -> int:
    """Returns the increment of a loop's counter: 1, or more if XLA has unrolled the loop.

    Counters are assumed to start at 0, as in scans and windowed matmuls.
    """
    index = re.search(r"index=(\d+)", counter.rest)
    root = next(reversed(body.values()))
    if index is None or root.opcode != "tuple":
        return 1
    following = body.get(root.operands[int(index[1])])
    if following is None or following.opcode != "add":
        return 1
    added = [body[name] for name in following.operands if name in body]
    constants = [int(one.operands[0]) for one in added if one.opcode == "constant"]
    return constants[0] if constants else 1


def parse(text: str) -> Program:
    """Returns the Program of `compiled.as_text()`."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        head = None
        if line.endswith("{") and not line.startswith(" ") and "->" in line:
            head = re.match(r"(ENTRY )?%?([^\s(]+)", line)
        if head:
            current = computations.setdefault(head[2], {})
            if head[1]:
                entry = head[2]
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, text = line.strip().removeprefix("ROOT ").partition(" = ")
    if text.startswith("("):
        end = _closing(text, 0) + 1
    else:
        end = text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _closing(text, opening)
    operands = tuple(
        operand.split(" ")[-1].strip().lstrip("%")
        for operand in _split(text[opening + 1 : closing])
    )
    return Instruction(name.lstrip("%"), shape, text[:opening], operands, text[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def _split(text: str) -> list[str]:
    """Splits at commas outside brackets; removes comments such as /*index=5*/."""
    text = re.sub(r"/\*.*?\*/", "", text)
    fields, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            fields.append(text[start:index])
            start = index + 1
    return [field.strip() for field in fields + [text[start:]] if field.strip()]
