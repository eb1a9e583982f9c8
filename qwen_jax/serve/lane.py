"""Runs long work one at a time, so that short work never waits for it.

Parsing holds the GIL, which the engine's thread needs between its steps. So a client's next turn
comes after a pause in proportion to its last one. A model prefills far fewer tokens in that time
than its tokenizer encodes.
"""

import asyncio
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable
from typing import TypeVar

from qwen_jax.inference.batching.fair_queue import FairQueue, Owner

T = TypeVar("T")

REST = 3.0  # seconds of pause per second of work
MAX_REST_SECONDS = 2.0


@dataclasses.dataclass
class _Turn:
    id: int
    owner: Owner
    granted: asyncio.Future


class Lane:
    """A thread that runs one function at a time; clients take turns and rest after each."""

    def __init__(self):
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "long-prompts")
        self._waiting: FairQueue[_Turn] = FairQueue()
        self._ids = itertools.count()
        self._busy = False
        self._resting: dict[str, float] = {}  # client -> the end of its pause, in the loop's time
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, client: str, function: Callable[[], T]) -> T:
        """Returns what `function` returns; a call that is cancelled leaves the queue."""
        loop = asyncio.get_running_loop()
        turn = _Turn(next(self._ids), Owner(client), loop.create_future())
        self._waiting.append(turn)
        self._grant()
        begin = None
        try:
            await turn.granted
            begin = loop.time()
            return await loop.run_in_executor(self._thread, function)
        finally:
            # A function that already runs ends on its own; the thread runs the next one after it.
            if self._waiting.remove(turn.id) is None:
                now = loop.time()
                took = 0.0 if begin is None else now - begin
                self._resting[client] = now + min(REST * took, MAX_REST_SECONDS)
                self._busy = False
                self._grant()

    def _grant(self) -> None:
        if self._busy or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._resting = {client: end for client, end in self._resting.items() if end > now}
        turn = self._waiting.first(dict.fromkeys(self._resting, 1))
        if turn.owner.client in self._resting:  # so all clients that wait rest
            if self._timer is None:
                self._timer = loop.call_at(min(self._resting.values()), self._grant_later)
            return
        self._waiting.take(turn)
        self._busy = True
        turn.granted.set_result(None)

    def _grant_later(self) -> None:
        self._timer = None
        self._grant()
