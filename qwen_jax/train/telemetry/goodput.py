"""Goodput: the fraction of a run's time spent on useful work, and a breakdown of the rest."""

import contextlib
import time
from collections.abc import Iterator

_WORK = ("train", "sample")  # useful work
KINDS = (*_WORK, "wait", "compile", "restore", "save", "evaluate", "redo")


class Goodput:
    """Seconds of this attempt by kind. The remaining time is `other`: imports, the first step.

    train: steps, excluding time spent waiting for batches (wait) or for PPO's rollouts (sample).
    compile, restore, save, evaluate: time during which the loop is paused. redo: time of train and
    sample that a rollback discarded (train/resilience/spikes.py).
    """

    def __init__(self):
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._saved: dict[str, float] = dict.fromkeys(_WORK, 0.0)

    @contextlib.contextmanager
    def spent_on(self, kind: str) -> Iterator[None]:
        """Counts the time of the block as `kind`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - started)

    def add(self, kind: str, seconds: float) -> None:
        self._seconds[kind] += seconds

    def mark(self) -> None:
        """Marks all work so far as saved."""
        self._saved = {kind: self._seconds[kind] for kind in _WORK}

    def undo(self) -> None:
        """Moves the time since the last mark to `redo`: those steps will run again."""
        for kind, saved in self._saved.items():
            self._seconds["redo"] += self._seconds[kind] - saved
            self._seconds[kind] = saved

    def record(self) -> dict[str, float]:
        """Returns metrics: time/KIND, in seconds since the start of this attempt, and perf/goodput,
        the fraction of the time spent on train and sample."""
        total = time.perf_counter() - self._started
        other = max(total - sum(self._seconds.values()), 0.0)
        found = {f"time/{kind}": round(seconds, 3) for kind, seconds in self._seconds.items()}
        return found | {
            "time/other": round(other, 3),
            "perf/goodput": sum(self._seconds[kind] for kind in _WORK) / total,
        }
