"""Which row a request gets, and what an earlier prompt has left there for it."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass
class Held:
    """What a row's slots hold: the first `filled` tokens of a prompt, computed in whole chunks.

    The answer's tokens, which lie behind, are not counted: they were computed one by one, with
    other rounding, and whoever used them again would depend on what was asked before.
    """

    prompt: Sequence[int] = ()
    filled: int = 0
    clock: int = 0  # when the row was last given away

    @property
    def complete(self) -> bool:
        return 0 < self.filled == len(self.prompt)


@dataclasses.dataclass(frozen=True)
class Plan:
    row: int
    source: int | None  # the row whose first slots are used again, maybe `row` itself
    shared: int  # how many


def plan(
    prompt: Sequence[int],
    rows: Sequence[Held],
    free: Sequence[int],
    *,
    chunk: int,
    same_codes: Callable[[int, int], bool],
) -> Plan | None:
    """The row for `prompt`; None: wait, for a row or for the prompt itself to be computed in one.

    Args:
      free: rows that nobody holds.
      same_codes: whether prompts of two lengths have the same positional encoding.
    """
    if not free:
        return None
    best, best_shared = None, 0
    for row, held in enumerate(rows):
        if row not in free and held.prompt == prompt and not held.complete:
            return None
        shared = usable(prompt, held, chunk) if same_codes(len(prompt), len(held.prompt)) else 0
        # Of equals, a free one: nothing is copied then.
        if shared > best_shared or (shared == best_shared > 0 and row in free):
            best, best_shared = row, shared
    row = best if best is not None and best in free else min(free, key=lambda row: rows[row].clock)
    return Plan(row, best, best_shared)


def usable(prompt: Sequence[int], held: Held, chunk: int) -> int:
    """Tokens of `prompt` that `held` has: all of it, or whole chunks and never the last token."""
    if held.complete and held.prompt == prompt:
        return len(prompt)
    n = min(held.filled, len(prompt) - 1)
    if n < chunk:
        return 0
    same = np.asarray(prompt[:n]) == np.asarray(held.prompt[:n])
    return (n if same.all() else int(np.argmin(same))) // chunk * chunk
