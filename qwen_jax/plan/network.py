"""The time of a collective on the links of a slice.

The most heavily loaded link determines the time. Gathers and sums use all torus dimensions that the
group spans in parallel, and both directions if a dimension wraps around. Each pair of a permutation
is routed one dimension at a time, in the shorter direction.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from qwen_jax.plan.topologies import Topology

Coords = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Network:
    """Links of a slice, and the coordinates of the program's devices."""

    topology: Topology
    coords: tuple[Coords, ...]  # coordinates of each partition's device

    def _wraps(self, side: int) -> bool:
        """Returns whether a dimension wraps around.

        On v5p it does if the slice consists of full cubes, on other chips if the dimension is long
        enough.
        """
        shape, wraps = self.topology.shape, self.topology.chip.wraps
        sides = shape if len(shape) == 3 else shape[side : side + 1]
        return all(size % wraps == 0 for size in sides)

    def bandwidth(self, group: Sequence[int]) -> float:
        """Returns the bytes per second that each group member can receive from the others."""
        total, link = 0.0, self.topology.chip.link_bandwidth
        for side, size in enumerate(self.topology.shape):
            extent = len({self.coords[device][side] for device in group})
            if extent > 1:
                total += link * (2 if extent == size and self._wraps(side) else 1)
        return total

    def seconds(self, kind: str, size: int, group: Sequence[int]) -> float:
        """Returns the seconds of one collective.

        Args:
          kind: "all-gather", "reduce-scatter", "all-reduce" or "all-to-all".
          size: bytes of the full array: the result of a gather, the operand of a scatter or sum.
          group: the partitions of one replica group.
        """
        number = len(group)
        if number == 1 or not size:
            return 0.0
        share = size * (number - 1) / number / self.bandwidth(group)
        if kind == "all-to-all":
            # Each device keeps 1/n and sends the rest. Half of that crosses the middle of the
            # longest dimension, whose links carry the traffic of all devices in either half.
            longest = max(
                range(len(self.topology.shape)),
                key=lambda side: len({self.coords[device][side] for device in group}),
            )
            extent = len({self.coords[device][longest] for device in group})
            links = 2 if extent == self.topology.shape[longest] and self._wraps(longest) else 1
            return size * extent / 4 / (links * self.topology.chip.link_bandwidth)
        return share * (2 if kind == "all-reduce" else 1)

    def permute_seconds(self, size: int, pairs: Sequence[tuple[int, int]]) -> float:
        """Returns the seconds of a collective-permute that sends `size` bytes per source."""
        load = collections.Counter()
        for source, target in pairs:
            load.update(self._route(self.coords[source], self.coords[target]))
        return size * max(load.values(), default=0) / self.topology.chip.link_bandwidth

    def _route(self, here: Coords, there: Coords) -> list[tuple[Coords, int, int]]:
        """Returns the links (from, side, direction) between two chips."""
        links = []
        for side, size in enumerate(self.topology.shape):
            distance = there[side] - here[side]
            if self._wraps(side) and abs(distance) > size / 2:
                distance -= math.copysign(size, distance)
            direction = 1 if distance > 0 else -1
            for _ in range(int(abs(distance))):
                links.append((here, side, direction))
                here = (*here[:side], (here[side] + direction) % size, *here[side + 1 :])
        return links


def first_group(attributes: str, devices: int) -> list[int]:
    """Returns the partitions of a collective's first group, from `replica_groups=...`.

    Three formats: {{0,1},{2,3}}; [2,4]<=[8] or [4,2]<=[2,4]T(1,0); mesh['a'=2,'b'=4] {'b'}.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return [int(number) for number in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, sizes = (_numbers(iota[i]) for i in (1, 2))
        order = np.arange(math.prod(sizes)).reshape(sizes)
        if iota[3]:
            order = order.transpose(_numbers(iota[3]))
        return order.reshape(shape)[0].tolist()
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:,?\s*device_ids=\(?\[([\d,]+)\]\)?"
        r"(?:T\(([\d,]+)\))?)?\s*\{([^}]*)\}",
        attributes,
    )
    if mesh:
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        order = np.arange(math.prod(axes.values()))
        if mesh[2]:
            order = order.reshape(_numbers(mesh[2]))
            order = order.transpose(_numbers(mesh[3])) if mesh[3] else order
        order = order.reshape(tuple(axes.values()))
        # A group may use part of an axis: 'a':(2)4 is 4 positions of axis 'a'; the stride follows
        # from the rest of the axis.
        wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh[4])
        index = []
        for name, size in axes.items():
            part = next((axis for axis in wanted if axis[0] == name), None)
            if part is None:
                index.append([0])
            elif part[1]:
                stride = size // int(part[1]) // int(part[2])
                index.append([i * stride for i in range(int(part[2]))])
            else:
                index.append(list(range(size)))
        return order[np.ix_(*index)].reshape(-1).tolist()
    return list(range(devices))  # replica_groups={} means all devices


def source_target_pairs(attributes: str) -> list[tuple[int, int]]:
    """Returns the `source_target_pairs` of a collective-permute."""
    match = re.search(r"source_target_pairs=\{(.*?\})\}", attributes)
    assert match is not None, attributes
    pairs = re.findall(r"\{(\d+),(\d+)\}", match[1])
    return [(int(source), int(target)) for source, target in pairs]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
