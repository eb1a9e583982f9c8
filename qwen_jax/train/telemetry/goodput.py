"""Where the time of a run goes: work, or what it needs besides."""

import contextlib
import time
from collections.abc import Iterator

_WORK = ("train", "sample")  # what a run is for
KINDS = (*_WORK, "wait", "compile", "restore", "save", "evaluate", "redo")


class Goodput:
    """Seconds of this life by kind. What no kind claims is `other`: imports, the first step.

    train: steps, without waiting for batches (wait) or for PPO's rollouts (sample).
    compile, restore, save, evaluate: what the loop stood still for. redo: train and sample that a
    going back undid (train/resilience/spikes.py).
    """

    def __init__(self):
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._saved: dict[str, float] = dict.fromkeys(_WORK, 0.0)

    @contextlib.contextmanager
    def spent_on(self, kind: str) -> Iterator[None]:
        """Books the time within as `kind`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - started)

    def add(self, kind: str, seconds: float) -> None:
        self._seconds[kind] += seconds

    def mark(self) -> None:
        """Work up to here is saved."""
        self._saved = {kind: self._seconds[kind] for kind in _WORK}

    def undo(self) -> None:
        """Work since the last mark is to be done again."""
        for kind, saved in self._saved.items():
            self._seconds["redo"] += self._seconds[kind] - saved
            self._seconds[kind] = saved

    def record(self) -> dict[str, float]:
        """For metrics.jsonl: time/KIND in seconds since this life began, and perf/goodput, the
        share of train and sample."""
        total = time.perf_counter() - self._started
        other = max(total - sum(self._seconds.values()), 0.0)
        found = {f"time/{kind}": round(seconds, 3) for kind, seconds in self._seconds.items()}
        return found | {
            "time/other": round(other, 3),
            "perf/goodput": sum(self._seconds[kind] for kind in _WORK) / total,
        }
