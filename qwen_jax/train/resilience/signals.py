"""When a run is asked to end: SIGTERM or SIGINT, to any one of its processes.

One process finishes the step that it is at. Of several, all have to save after the same step, and
the signal may come to one of them alone: JAX's coordination service spreads the word and names a
step that none has passed yet. Its own handler takes SIGTERM then; asking it costs no message.
"""

import signal

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Within `with`, signals are collected; `at(step)` is asked after every step.

    A second signal is not caught in a run of one process, for a person in a hurry.
    """

    def __init__(self):
        self._caught: list[int] = []
        self._previous = {}
        self._several = jax.process_count() > 1

    def at(self, step: int) -> int | None:
        """The signal that ends the run after `step` steps, or None: the same in every process."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            return self._caught[0] if self._caught else signal.SIGTERM
        return self._caught[0] if self._caught and not self._several else None

    def __enter__(self) -> "StopRequest":
        try:
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._catch)
        except ValueError:  # not the main thread: signals are somebody else's business
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
            signal.raise_signal(signal.SIGTERM)  # JAX tells the others
