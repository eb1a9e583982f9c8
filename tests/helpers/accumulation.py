"""Traces how a compiled step sums the embedding's gradient over micro-batches and devices.

The program is interpreted with labels instead of numbers: a value is the set of labels of what it
was computed from, and a tuple is a tuple of values.
"""

import collections
import dataclasses
import re
from typing import Any

from qwen_jax.plan import hlo
from qwen_jax.plan.network import first_group

_COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
_SUMS = ("all-reduce", "reduce-scatter")
_SAME = ("broadcast", "bitcast", "copy", "convert", "reshape", "transpose", "slice", "opt-barrier")
# Their computations are functions of elements.
_REDUCING = ("reduce", "reduce-window", "sort", "map", "select-and-scatter")
_CALLED = ("calls", "to_apply", "called_computations", "branch_computations")
_ZERO, _DEVICE = "zero", "device"  # a constant of zeros; a number or mask of the device


@dataclasses.dataclass(frozen=True)
class _Carry:
    """Element `index` of a loop's state, as it was before the iteration."""

    loop: str
    index: int
    zeroed: bool = False  # some devices replaced it by zeros, and there was no collective since


@dataclasses.dataclass(frozen=True)
class _Scattered:
    """A gradient from a scatter, and how often it was summed over the devices."""

    sums: int = 0


@dataclasses.dataclass
class Trace:
    """What the interpretation found.

    Attributes:
      lost: elements of loop states (sums of the gradient) that some devices replace by zeros in
        each iteration, without a collective: what these devices had summed up does not count.
      sums: how often the gradient is summed over the devices, on every path to the result.
    """

    lost: set[tuple[str, int]]
    sums: set[int]


def trace(text: str, *, source: str, group: list[int], devices: int) -> Trace:
    """Interprets compiled text.

    Args:
      source: regular expression of the op_name of the embedding's scatter.
      group: the first devices that hold different tokens for the same part of the table, in order.
      devices: number of devices of the program.
    """
    found = _Interpreter(text, source, group, devices)
    result = found.call(found.program.entry, [])
    assert found.scatters, f"no scatter with the op_name {source}"
    return Trace(found.lost, {one.sums for one in _flat(result) if isinstance(one, _Scattered)})


class _Interpreter:
    def __init__(self, text: str, source: str, group: list[int], devices: int):
        self.program = hlo.parse(text)
        self.roots = set(re.findall(r"^ *ROOT %?(\S+) = ", text, re.MULTILINE))
        self.source, self.group, self.devices = re.compile(source), group, devices
        self.lost: set[tuple[str, int]] = set()
        self.scatters: set[str] = set()

    def call(self, name: str, arguments: list):
        """Returns the value of a computation's result; absent arguments have no labels."""
        values: dict[str, Any] = collections.defaultdict(frozenset)
        root, body = frozenset(), self.program.computations[name]
        for one in body.values():
            operands = [values[operand] for operand in one.operands]
            if one.opcode == "parameter":
                number = int(one.operands[0])
                value = arguments[number] if number < len(arguments) else frozenset()
            elif one.opcode.endswith("-update"):  # the operands of a call that was started before
                value = self.value(body[one.operands[0]], operands[1:])
            elif one.opcode.endswith("-done"):
                value = operands[0]
            else:
                value = self.value(one, operands)
            values[one.name] = value
            if one.name in self.roots:
                root = value
        return root

    def value(self, one: hlo.Instruction, operands: list):
        opcode = one.opcode
        if opcode == "while":
            return self.loop(one, operands[0])
        if opcode == "tuple":
            return tuple(operands)
        if opcode == "get-tuple-element":
            index = int(one.rest.split("index=")[1].split(",")[0])
            return operands[0][index] if isinstance(operands[0], tuple) else operands[0]
        if opcode in ("partition-id", "replica-id"):
            return frozenset({_DEVICE})
        if opcode == "constant":
            return frozenset({_ZERO}) if one.operands in (("0",), ("-0",)) else frozenset()
        if opcode.removesuffix("-start") in _COLLECTIVES:
            results = [self.collective(one, _flat(operand)) for operand in operands]
            return results[0] if len(results) == 1 else tuple(results)
        if opcode == "scatter":
            return self.scatter(one, operands)
        called = one.called(*_CALLED)
        if called and opcode not in (
            "reduce",
            "reduce-window",
            "sort",
            "map",
            "select-and-scatter",
        ):
            arguments = operands[1:] if opcode == "conditional" else operands
            return _union([self.call(name, arguments) for name in called])
        return _elementwise(opcode, operands)

    def collective(self, one: hlo.Instruction, labels: frozenset) -> frozenset:
        group = sorted(first_group(one.rest, self.devices))
        summed = one.opcode.removesuffix("-start") in _SUMS and group == self.group
        after = set()
        for label in labels:
            if isinstance(label, _Carry):
                label = dataclasses.replace(label, zeroed=False)
            if isinstance(label, _Scattered) and summed:
                label = _Scattered(min(label.sums + 1, 2))
            after.add(label)
        return frozenset(after - {_ZERO, _DEVICE})

    def scatter(self, one: hlo.Instruction, operands: list) -> frozenset:
        labels = _flat([operands[0], *operands[2:]]) - {_ZERO}
        if self.source.search(one.source):
            self.scatters.add(one.name)
            labels |= {_Scattered()}
        return labels

    def loop(self, one: hlo.Instruction, state):
        """Iterates until the labels of the loop's state do not change."""
        if not isinstance(state, tuple):
            state = (state,)
        (body,) = one.called("body")
        while True:
            before = tuple(
                _flat(labels) - {_ZERO} | {_Carry(one.name, index)}
                for index, labels in enumerate(state)
            )
            after = tuple(map(_flat, self.call(body, [before])))
            self.lost |= {
                (one.name, index)
                for index, labels in enumerate(after)
                if _Carry(one.name, index, zeroed=True) in labels
                and any(isinstance(label, _Scattered) for label in labels)
            }
            own = {
                label
                for label in _flat(after)
                if isinstance(label, _Carry) and label.loop == one.name
            }
            joined = tuple(_flat(a) | b - own for a, b in zip(state, after, strict=True))
            if joined == state:
                return state
            state = joined


def _elementwise(opcode: str, operands: list):
    if opcode in _SAME:
        return operands[0]
    if opcode in ("dynamic-slice", "gather"):  # a part at a position
        return _flat(operands[:1]) - {_ZERO}
    if opcode == "dynamic-update-slice":
        return _flat(operands[:2]) - {_ZERO}
    labels = _flat(operands)
    zeroes = opcode == "select" and frozenset({_ZERO}) in operands[1:]
    if zeroes and _DEVICE in _flat(operands[:1]):
        labels = frozenset(
            dataclasses.replace(label, zeroed=True) if isinstance(label, _Carry) else label
            for label in labels
        )
    return (
        labels if all(operand == frozenset({_ZERO}) for operand in operands) else labels - {_ZERO}
    )


def _flat(value) -> frozenset:
    """Returns the labels of a value, or of all elements of a tuple or list."""
    if isinstance(value, frozenset):
        return value
    return frozenset().union(*map(_flat, value))


def _union(values: list):
    """Joins values of equal shape."""
    if len(values) == 1:
        return values[0]
    if all(isinstance(value, tuple) for value in values) and len(set(map(len, values))) == 1:
        return tuple(_union(list(elements)) for elements in zip(*values, strict=True))
    return _flat(values)
