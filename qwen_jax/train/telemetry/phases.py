"""Times the phases of a step with several phases, such as a PPO step.

A thread waits for each phase and reads the clock; the training loop does not wait. The times are
therefore correct without extra synchronization, even though the host runs ahead of the device.
"""

import collections
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

PHASES = ("data", "generation", "scoring", "update")  # phases of a PPO step


def _ready_at(output: Any) -> float:
    output.block_until_ready()
    return time.perf_counter()


class PhaseTimer:
    """Divides the time of a step among its phases.

    The host calls `device` and `host` in the order of the device's work. Time up to the end of a
    phase belongs to it unless an earlier phase claimed it. Host work therefore counts only while
    the device is idle, and the phases of a step add up to its time.

    Example:
      >>> timer = PhaseTimer()
      >>> with timer.running():  # doctest: +SKIP
      ...     batch = read()
      ...     timer.host("data")
      ...     state, metrics = step(state, batch)
      ...     timer.device("update", metrics["train/loss"])
      ...     timer.take("update")  # once the metrics have been read
      {"data": 0.01, "update": 1.2}
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.perf_counter,
        ready_at: Callable[[Any], float] = _ready_at,
    ):
        """
        Args:
          ready_at: waits for a device output and returns the time; called in the thread.
        """
        self._clock, self._ready_at = clock, ready_at
        self._ends: collections.deque[tuple[str | None, Callable[[], float]]] = collections.deque()
        self._claimed = 0.0  # time up to here belongs to a phase
        self._thread: concurrent.futures.Executor | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Times phases inside the block; outside it, calls have no effect."""
        self._ends.clear()
        self._claimed = self._clock()
        with concurrent.futures.ThreadPoolExecutor(1, "phase timer") as thread:
            self._thread = thread
            try:
                yield
            finally:
                self._thread = None

    def device(self, phase: str, output: Any) -> None:
        """Records that work of this phase was dispatched to the device.

        Args:
          output: an array that is ready when the phase ends; it must not be donated.
        """
        if self._thread is not None:
            self._ends.append((phase, self._thread.submit(self._ready_at, output).result))

    def host(self, phase: str | None) -> None:
        """Records that the host has just finished work of this phase; None: work of no phase."""
        if self._thread is not None:
            now = self._clock()
            self._ends.append((phase, lambda: now))

    def timed(self, train_step: Callable) -> Callable:
        """Wraps `train_step` to record its device work as the phase "update"."""

        def step(state, batch):
            state, metrics = train_step(state, batch)
            self.device("update", jax.tree.leaves(metrics)[0])
            return state, metrics

        return step

    def take(self, last: str) -> dict[str, float]:
        """Returns seconds by phase since the last call, up to the end of the next phase `last`.

        The device must have finished that phase.
        """
        seconds: dict[str, float] = {}
        while self._ends:
            phase, end = self._ends.popleft()
            before, self._claimed = self._claimed, max(self._claimed, end())
            if phase is not None:
                seconds[phase] = seconds.get(phase, 0.0) + self._claimed - before
            if phase == last:
                break
        return seconds
