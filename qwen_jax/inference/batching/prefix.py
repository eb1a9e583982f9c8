"""Prefix caching: assigns a request to a decode slot and reuses the prefix of an earlier prompt."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass
class CachedPrompt:
    """The prompt in a slot's cache: its first `filled` tokens, computed in full chunks.

    Generated tokens, which follow the prompt, do not count. They were computed one at a time, with
    different rounding, so a request that reused them would depend on earlier requests.
    """

    prompt: Sequence[int] = ()
    filled: int = 0
    clock: int = 0  # when the slot was last assigned

    @property
    def complete(self) -> bool:
        return 0 < self.filled == len(self.prompt)


@dataclasses.dataclass(frozen=True)
class Placement:
    slot: int
    source: int | None  # the slot whose first positions are reused, possibly `slot` itself
    shared: int  # the number of reused positions


def place(
    prompt: Sequence[int],
    cached: Sequence[CachedPrompt],
    free: Sequence[int],
    *,
    chunk: int,
    same_rotation: Callable[[int, int], bool],
) -> Placement | None:
    """Returns the slot for `prompt`, or None if it must wait.

    A prompt waits for a free slot, or until another slot has computed the same prompt.

    Args:
      cached: the prompt in each slot's cache.
      free: slots without a request.
      same_rotation: returns whether prompts of two lengths have the same positional encoding.
    """
    if not free:
        return None
    best, best_shared = None, 0
    for slot, held in enumerate(cached):
        if slot not in free and held.prompt == prompt and not held.complete:
            return None
        same = same_rotation(len(prompt), len(held.prompt))
        shared = reusable_tokens(prompt, held, chunk) if same else 0
        # On a tie, prefer a free slot, because it needs no copy.
        if shared > best_shared or (shared == best_shared > 0 and slot in free):
            best, best_shared = slot, shared
    oldest = min(free, key=lambda slot: cached[slot].clock)
    return Placement(best if best is not None and best in free else oldest, best, best_shared)


def reusable_tokens(prompt: Sequence[int], held: CachedPrompt, chunk: int) -> int:
    """Returns how many tokens of `prompt` the slot can reuse.

    An identical prompt is reused entirely. Otherwise only full chunks are, and never the last
    token.
    """
    if held.complete and held.prompt == prompt:
        return len(prompt)
    n = min(held.filled, len(prompt) - 1)
    if n < chunk:
        return 0
    same = np.asarray(prompt[:n]) == np.asarray(held.prompt[:n])
    return (n if same.all() else int(np.argmin(same))) // chunk * chunk
