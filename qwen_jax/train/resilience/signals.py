"""Stops a run on SIGTERM or SIGINT, sent to any of its processes.

A single process finishes its current step. Several processes must all save after the same step,
but the signal may reach only one of them. JAX's coordination service therefore notifies all
processes and chooses a step that none has passed. In this case its own handler receives SIGTERM.
The check after each step does not communicate.
"""

import signal

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Catches signals inside a `with` block; the loop calls `at(step)` after every step.

    In a single-process run, a second signal is not caught and terminates the run immediately.
    """

    def __init__(self):
        self._caught: list[int] = []
        self._previous = {}
        self._several = jax.process_count() > 1

    def at(self, step: int) -> int | None:
        """Returns the signal that stops the run after `step` steps, or None.

        All processes stop after the same step.
        """
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            return self._caught[0] if self._caught else signal.SIGTERM
        return self._caught[0] if self._caught and not self._several else None

    def __enter__(self) -> "StopRequest":
        try:
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._catch)
        except ValueError:  # only the main thread may set handlers
            pass
        return self

    def __exit__(self, *_) -> None:
        for number, old in self._previous.items():
            signal.signal(number, old)
        self._previous = {}

    def _catch(self, number, frame) -> None:
        del frame
        self._caught.append(number)
        self.__exit__()
        if self._several:
            signal.raise_signal(signal.SIGTERM)  # JAX notifies the other processes
