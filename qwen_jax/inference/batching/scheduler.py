"""Which request gets which row, and which parts of which prompts are computed next.

The host's side of the engine; the devices' is batch.py. Prompts are cut into chunks at fixed
places, and chunks of one size are always computed so many at a time: neither depends on the
company that a request has.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.inference.batching.prefix import Held, Plan, plan
from qwen_jax.inference.request import Request
from qwen_jax.inference.stream import TextStream

SMALLEST_CHUNK = 16
_SHORT = 128  # tokens of short prompts that are computed together
_WHILE_IDLE = 4  # times as many tokens of prompts in a step in which no row decodes


@dataclasses.dataclass
class Job:
    """One answer on its way."""

    id: int
    request: Request
    stream: int  # which of the n answers of the request
    text: TextStream | None
    count: int = 0  # tokens so far


class Chunk(NamedTuple):
    """Parts of prompts that are computed together, as batch.prefill takes them; int32."""

    tokens: np.ndarray  # [P, T]
    num_tokens: np.ndarray  # [P]; the real ones
    rows: np.ndarray  # [P]; one beyond the last is nobody's
    starts: np.ndarray  # [P]
    prompt_lengths: np.ndarray  # [P]


class Scheduler:
    """The queue, and what each row holds.

    Args:
      chunk: tokens of a prompt computed at a time; a power of two.
    """

    def __init__(self, config: ModelConfig, *, rows: int, chunk: int):
        self._config, self._chunk = config, chunk
        self.queue: collections.deque[Job] = collections.deque()
        self.jobs: list[Job | None] = [None] * rows
        self.begun = np.zeros(rows, bool)  # rows whose answer has begun
        self._held = [Held() for _ in range(rows)]
        self._clock = 0

    @property
    def busy(self) -> bool:
        return bool(self.queue) or any(job is not None for job in self.jobs)

    def job(self, row: int) -> Job:
        """The job of a row that has one."""
        job = self.jobs[row]
        assert job is not None, f"row {row} is idle"
        return job

    def admit(self) -> Iterator[tuple[Job, Plan]]:
        """Gives rows to waiting jobs, in order, as long as there are any."""
        while self.queue:
            job = self.queue[0]
            free = [row for row, other in enumerate(self.jobs) if other is None]
            chosen = plan(
                job.request.prompt, self._held, free, chunk=self._chunk, same_codes=self._same_codes
            )
            if chosen is None:
                return
            self.queue.popleft()
            self._clock += 1
            self.jobs[chosen.row] = job
            self._held[chosen.row] = Held(job.request.prompt, chosen.shared, self._clock)
            yield job, chosen

    def prefill(self) -> Iterator[Chunk | int]:
        """What a step does for prompts, oldest first: chunks, and rows whose answer begins.

        A chunk's tokens at a time while other rows decode, who wait for it; more where none does.
        """
        budget = self._chunk * (1 if self.begun.any() else _WHILE_IDLE)
        waiting = [
            row for row, job in enumerate(self.jobs) if job is not None and not self.begun[row]
        ]
        waiting.sort(key=lambda row: self._held[row].clock)
        while True:
            for row in [row for row in waiting if not self._next_size(row)]:
                waiting.remove(row)
                self.begun[row] = True
                yield row
            if not waiting or budget <= 0:
                return
            size = self._next_size(waiting[0])
            alike = [row for row in waiting if self._next_size(row) == size]
            chunk = self._cut(alike[: self._at_once(size)], size)
            budget -= chunk.tokens.size
            yield chunk

    def release(self, row: int) -> None:
        """The row's job has ended; what it holds of the prompt stays."""
        self.jobs[row], self.begun[row] = None, False

    def remove(self, request_id: int) -> Job | None:
        """Takes a job out, wherever it is; None if it has ended."""
        for job in self.queue:
            if job.id == request_id:
                self.queue.remove(job)
                return job
        for row, job in enumerate(self.jobs):
            if job is not None and job.id == request_id:
                self.release(row)
                return job
        return None

    def _next_size(self, row: int) -> int:
        """The padded length of a row's next chunk; 0 where its prompt is complete."""
        left = min(len(self._held[row].prompt) - self._held[row].filled, self._chunk)
        return left and max(SMALLEST_CHUNK, 1 << (left - 1).bit_length())

    def _at_once(self, size: int) -> int:
        """Chunks of a size computed together, always so many: rounding must not tell of others."""
        return max(1, min(len(self.jobs), _SHORT // size))

    def _cut(self, rows: list[int], size: int) -> Chunk:
        """The next `size` tokens of some rows, which count as filled from now on."""
        P = self._at_once(size)
        tokens = np.zeros((P, size), np.int32)
        num_tokens, starts, lengths = (np.zeros(P, np.int32) for _ in range(3))
        targets = len(self.jobs) + np.arange(P, dtype=np.int32)  # nobody's, if nobody comes
        for i, row in enumerate(rows):
            held = self._held[row]
            part = held.prompt[held.filled : held.filled + size]
            tokens[i, : len(part)] = part
            num_tokens[i], targets[i] = len(part), row
            starts[i], lengths[i] = held.filled, len(held.prompt)
            held.filled += len(part)
        return Chunk(tokens, num_tokens, targets, starts, lengths)

    def _same_codes(self, one: int, other: int) -> bool:
        """Whether prompts of these lengths are rotated alike (dynamic NTK, report 2.5)."""
        return _codes(one, self._config) == _codes(other, self._config)


@functools.lru_cache(maxsize=4096)
def _codes(length: int, config: ModelConfig) -> tuple[int, ...]:
    """How often the training length doubles within what each layer sees of a prompt."""
    if not config.extension.dynamic_ntk:
        return ()
    seen = [min(length, window) for window in config.extension.windows or (length,)]
    return tuple((-(-n // config.context_length) - 1).bit_length() for n in seen)
