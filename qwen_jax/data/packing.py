"""Packs examples of different lengths into sequences of equal length: best-fit decreasing."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns bins of indices into `lengths`; the lengths in a bin sum to at most `capacity`.

    No example is split. Each example, longest first, goes into the bin with the least free space
    that still fits it. For the length distributions of text this is within a few bins of the
    optimum. The time is O(n capacity / 64), because the free spaces in use are bits of one integer.
    """
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]  # free space -> its bins
    spaces = 0  # bit s is set if some bin has free space s
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        assert 0 < length <= capacity, (index, length)
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            chosen = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        left = space - length
        by_space[left].append(chosen)
        spaces |= 1 << left
    return bins
