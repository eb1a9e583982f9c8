"""Examples of different lengths into rows of one length: best fit, longest first."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, the sum of each at most `capacity`; no example is cut.

    Each example, longest first, goes into the row with the least room that still holds it. That is
    within a few rows of the least possible number for lengths as text has them, and takes
    O(n capacity / 64): the rooms in use are bits of one whole number.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # room -> rows that have it
    rooms = 0  # bit r: some row has room r
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        assert 0 < length <= capacity, (index, length)
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        left = room - length
        by_room[left].append(row)
        rooms |= 1 << left
    return rows
