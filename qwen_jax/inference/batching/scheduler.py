"""The scheduler: assigns requests to decode slots and selects the next prompt chunks.

This part of the engine runs on the host; batch.py runs on the devices. Prompts are split into
chunks at fixed positions, and chunks of a given size are always computed in groups of a fixed size.
Neither depends on other requests.
"""

import collections
import dataclasses
import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.inference.batching.fair_queue import ANYONE, FairQueue, Owner
from qwen_jax.inference.batching.prefix import CachedPrompt, Placement, place
from qwen_jax.inference.request import Request
from qwen_jax.inference.stream import TextStream

SMALLEST_CHUNK = 16
_SHORT = 128  # tokens in a group of short chunks that are computed together
_HELD_STEPS = 4  # for which a slot that a client gave up stays free for the one that needed it
_IDLE_FACTOR = 4  # factor on the prompt tokens of a step in which no slot decodes


@dataclasses.dataclass
class Choice:
    """One of a request's n completions, waiting or running."""

    id: int
    request: Request
    stream: int  # its index among the request's n completions
    text: TextStream | None
    owner: Owner = ANYONE
    count: int = 0  # new tokens so far
    sent: int = 0  # of these, tokens already returned before the completion lost its slot


class Chunk(NamedTuple):
    """Prompt chunks that are computed together: the arguments of batch.prefill, int32."""

    tokens: np.ndarray  # [P, T]
    num_tokens: np.ndarray  # [P]; number of real tokens in each chunk
    slots: np.ndarray  # [P]; an index past the last slot is padding
    starts: np.ndarray  # [P]; cache position of each chunk's first token
    prompt_lengths: np.ndarray  # [P]; length of the full prompt


class Scheduler:
    """Tracks waiting and running completions, and the prompt in each slot's cache.

    Args:
      num_slots: number of decode slots, that is, of completions that run concurrently.
      chunk: prompt tokens computed at a time; a power of two.
      shards: parts that slots are split into, each on devices of its own.
    """

    def __init__(self, config: ModelConfig, *, num_slots: int, chunk: int, shards: int = 1):
        self._config, self._chunk, self._shards = config, chunk, shards
        self.waiting: FairQueue[Choice] = FairQueue()
        self.running: list[Choice | None] = [None] * num_slots  # by slot
        self.decoding = np.zeros(num_slots, bool)  # slots past their prompt
        self._cached = [CachedPrompt() for _ in range(num_slots)]
        self._clock = 0
        # Slots that a client gave up: the client that needed it, and the steps left since then.
        self._held: dict[int, tuple[Hashable, int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(choice is not None for choice in self.running)

    def choice(self, slot: int) -> Choice:
        """Returns the completion in a slot, which must not be idle."""
        choice = self.running[slot]
        assert choice is not None, f"slot {slot} is idle"
        return choice

    def admit(self) -> Iterator[tuple[Choice, Placement]]:
        """Assigns slots to waiting completions, in turn, while there are slots for them.

        A slot that a client gave up for another one is held for the latter for a few steps after
        its completion. Otherwise every request of a client that sends one after the other would
        wait until the slot is given up again, and the same work would be repeated.
        """
        self._held = {
            slot: (client, left - (self.running[slot] is None))
            for slot, (client, left) in self._held.items()
            if left > 0
        }
        while self.waiting:
            running = collections.Counter(
                choice.owner.client for choice in self.running if choice is not None
            )
            choice = self.waiting.first(running)
            prompt = choice.request.prompt
            client = choice.owner.client
            free = [slot for slot, other in enumerate(self.running) if other is None]
            if running[client]:  # a client without a completion may take any slot
                free = [s for s in free if self._held.get(s, (client, 0))[0] == client]
            free = free or self._surplus(client, running)
            placement = place(
                prompt,
                self._cached,
                free,
                chunk=self._chunk,
                same_rotation=functools.partial(same_rotation, config=self._config),
            )
            if placement is None:
                return
            if self.running[placement.slot] is not None:
                self._preempt(placement.slot)
                self._held[placement.slot] = client, _HELD_STEPS
            elif placement.slot in self._held:
                self._held[placement.slot] = client, _HELD_STEPS
            self.waiting.take(choice)
            self._clock += 1
            self.running[placement.slot] = choice
            self._cached[placement.slot] = CachedPrompt(prompt, placement.shared, self._clock)
            yield choice, placement

    def prefill(self) -> Iterator[Chunk | int]:
        """Yields a step's prompt work, oldest first: chunks, and slots that start decoding.

        While other slots decode, a step computes only one chunk of tokens, because those slots
        wait for it. Otherwise it computes more.
        """
        budget = self._chunk * (1 if self.decoding.any() else _IDLE_FACTOR)
        prefilling = [
            slot
            for slot, choice in enumerate(self.running)
            if choice is not None and not self.decoding[slot]
        ]
        prefilling.sort(key=lambda slot: self._cached[slot].clock)
        while True:
            for slot in [slot for slot in prefilling if not self._next_size(slot)]:
                prefilling.remove(slot)
                self.decoding[slot] = True
                yield slot
            if not prefilling or budget <= 0:
                return
            size = self._next_size(prefilling[0])
            same_size = [slot for slot in prefilling if self._next_size(slot) == size]
            chunk = self._next_chunk(same_size[: self._group_size(size)], size)
            budget -= chunk.tokens.size
            yield chunk

    def release(self, slot: int) -> None:
        """Frees a slot whose completion has finished; keeps its cached prompt."""
        self.running[slot], self.decoding[slot] = None, False

    def remove(self, request_id: int) -> Choice | None:
        """Removes and returns a waiting or running completion; None if it has finished."""
        if (choice := self.waiting.remove(request_id)) is not None:
            return choice
        for slot, choice in enumerate(self.running):
            if choice is not None and choice.id == request_id:
                self.release(slot)
                return choice
        return None

    def _surplus(self, client: Hashable, running: Mapping[Hashable, int]) -> list[int]:
        """Returns a slot that a client with more than its share gives up for `client`, if any."""
        largest = max(running, key=lambda other: running[other])
        if running[largest] - running.get(client, 0) < 2:
            return []

        def lost(slot: int) -> tuple[int, int]:  # the least work is repeated
            return self.choice(slot).count, -self._cached[slot].clock

        slots = range(len(self.running))
        return [min((s for s in slots if self.choice(s).owner.client == largest), key=lost)]

    def _preempt(self, slot: int) -> None:
        """Returns a running completion to the queue; it will sample the same tokens again."""
        choice = self.choice(slot)
        choice.sent, choice.count = max(choice.sent, choice.count), 0
        self.release(slot)
        self.waiting.appendleft(choice)

    def _next_size(self, slot: int) -> int:
        """Returns the padded length of a slot's next chunk; 0 if its prompt is complete."""
        left = min(len(self._cached[slot].prompt) - self._cached[slot].filled, self._chunk)
        return left and max(SMALLEST_CHUNK, 1 << (left - 1).bit_length())

    def _group_size(self, size: int) -> int:
        """Returns how many chunks of a size are computed together.

        The number is fixed, because rounding must not depend on other requests. Each shard of the
        slots computes as many as if there were no other, because it must not depend on them either.
        """
        slots = len(self.running) // self._shards
        return self._shards * max(1, min(slots, _SHORT // size))

    def _next_chunk(self, slots: list[int], size: int) -> Chunk:
        """Returns the next `size` tokens of each of `slots`, and marks them as filled."""
        P = self._group_size(size)
        tokens = np.zeros((P, size), np.int32)
        num_tokens, starts, lengths = (np.zeros(P, np.int32) for _ in range(3))
        targets = len(self.running) + np.arange(P, dtype=np.int32)  # padding unless set below
        for i, slot in enumerate(slots):
            held = self._cached[slot]
            part = held.prompt[held.filled : held.filled + size]
            tokens[i, : len(part)] = part
            num_tokens[i], targets[i] = len(part), slot
            starts[i], lengths[i] = held.filled, len(held.prompt)
            held.filled += len(part)
        return Chunk(tokens, num_tokens, targets, starts, lengths)


def same_rotation(one: int, other: int, config: ModelConfig) -> bool:
    """Returns whether two prompt lengths have the same rotation (dynamic NTK, report 2.5)."""
    return _ntk_doublings(one, config) == _ntk_doublings(other, config)


@functools.lru_cache(maxsize=4096)
def _ntk_doublings(length: int, config: ModelConfig) -> tuple[int, ...]:
    """Returns, per attention window, how often the training length doubles to cover a prompt."""
    if not config.extension.dynamic_ntk:
        return ()
    windows = config.layer_windows(inference=True) or (None,)
    seen = [length if window is None else min(length, window) for window in windows]
    return tuple((-(-n // config.context_length) - 1).bit_length() for n in seen)
