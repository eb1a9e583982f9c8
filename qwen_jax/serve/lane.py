"""Runs long work one at a time, so that short work never waits for it."""

import asyncio
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable
from typing import TypeVar

from qwen_jax.inference.batching.fair_queue import FairQueue, Owner

T = TypeVar("T")


@dataclasses.dataclass
class _Turn:
    id: int
    owner: Owner
    granted: asyncio.Future


class Lane:
    """A thread that runs one function at a time; clients take turns."""

    def __init__(self):
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "long-prompts")
        self._waiting: FairQueue[_Turn] = FairQueue()
        self._ids = itertools.count()
        self._busy = False

    async def run(self, client: str, function: Callable[[], T]) -> T:
        """Returns what `function` returns; a call that is cancelled leaves the queue."""
        loop = asyncio.get_running_loop()
        turn = _Turn(next(self._ids), Owner(client), loop.create_future())
        self._waiting.append(turn)
        self._grant()
        try:
            await turn.granted
            return await loop.run_in_executor(self._thread, function)
        finally:
            # A function that already runs ends on its own; the thread runs the next one after it.
            if self._waiting.remove(turn.id) is None:
                self._busy = False
                self._grant()

    def _grant(self) -> None:
        if self._waiting and not self._busy:
            turn = self._waiting.first({})
            self._waiting.take(turn)
            self._busy = True
            turn.granted.set_result(None)
