"""What each decode slot may sample next, as the arrays of the device's one program.

The program always has a mask. Without a grammar in any slot, the mask is an array that stays on the
device, and the program skips it. So sequences without a grammar run the same program with the same
bits whether others have one or not.
"""

import concurrent.futures
import os

import jax.numpy as jnp
import numpy as np

from qwen_jax.inference.constraints.grammar import Matcher
from qwen_jax.inference.loop import Constraints
from qwen_jax.types import Array

# Tokens that a slot without a grammar decodes while one with a grammar decodes its next one. With 2
# or more, the latter lost a third of its speed, and the former won nothing that could be measured
# (benchmarks/serve/constrained.py, toy_8m on a CPU): a call costs far less than a step.
MIXED_STEPS = 1
_PARALLEL = 4  # masks from which on threads are worth their start; llguidance releases the GIL


class Masks:
    """The constraints of B decode slots over V ids."""

    def __init__(self, num_slots: int, vocab_size: int):
        self._words = -(-vocab_size // 32)
        self._all_BW = jnp.full((num_slots, self._words), 0xFFFFFFFF, jnp.uint32)
        self._one_1W = jnp.full((1, self._words), 0xFFFFFFFF, jnp.uint32)
        self._matchers: dict[int, Matcher] = {}  # by slot
        self._none_B = np.zeros(num_slots, bool)
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def put(self, slot: int, matcher: Matcher | None) -> None:
        """Sets the grammar of a slot; None: it has none."""
        self._matchers.pop(slot, None)
        if matcher is not None:
            self._matchers[slot] = matcher

    def __contains__(self, slot: int) -> bool:
        return slot in self._matchers

    def matcher(self, slot: int) -> Matcher | None:
        return self._matchers.get(slot)

    def steps(self, decoding: np.ndarray, steps: int) -> int:
        """Returns how many of `steps` tokens the slots without a grammar decode in a call."""
        mixed = any(decoding[slot] for slot in self._matchers)
        return min(steps, MIXED_STEPS) if mixed else steps

    def first(self, slot: int) -> Constraints:
        """Returns the constraints of the first token of a slot, arrays of shape [1] or [1, W]."""
        quota = np.ones(1, np.int32)
        matcher = self._matchers.get(slot)
        if matcher is None:
            return Constraints(self._one_1W, np.zeros(1, bool), quota)
        words_1W = np.zeros((1, self._words), np.int32)
        _fill(matcher, words_1W[0])
        return Constraints(_on_device(words_1W), np.ones(1, bool), quota)

    def next(self, decoding: np.ndarray, waiting: set[int], steps: int) -> Constraints:
        """Returns the constraints of a call of all slots.

        Args:
          decoding: bool [B]; slots that decode.
          waiting: slots whose first token the host has not read: they skip this call.
          steps: tokens that a slot without a grammar decodes in this call.
        """
        quota = np.full(len(decoding), steps, np.int32)
        slots = [slot for slot in self._matchers if decoding[slot]]
        if not slots:
            return Constraints(self._all_BW, self._none_B, quota)
        quota[slots] = 1
        quota[list(waiting)] = 0
        words_BW = np.full((len(decoding), self._words), -1, np.int32)
        filled = [slot for slot in slots if slot not in waiting]
        words_BW[filled] = 0
        tasks = [(self._matchers[slot], words_BW[slot]) for slot in filled]
        if len(tasks) < _PARALLEL:
            for matcher, words in tasks:
                _fill(matcher, words)
        else:
            if self._pool is None:
                threads = os.cpu_count() or 1
                self._pool = concurrent.futures.ThreadPoolExecutor(threads, "masks")
            list(self._pool.map(lambda task: _fill(*task), tasks))
        constrained = self._none_B.copy()
        constrained[filled] = True
        return Constraints(_on_device(words_BW), constrained, quota)


def _on_device(words: np.ndarray) -> Array:
    """Returns masks as an array of the kind that the program has without a grammar, too."""
    return jnp.asarray(words.view(np.uint32))


def _fill(matcher: Matcher, words_W: np.ndarray) -> None:
    """Writes a mask; ids past the grammar's vocabulary pad the model's and are not allowed."""
    matcher.fill(words_W[: matcher.num_words])
