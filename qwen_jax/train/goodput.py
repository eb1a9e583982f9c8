"""Where the time of a run goes: training, or what training needs besides."""

import contextlib
import time
from collections.abc import Iterator

KINDS = ("train", "wait", "compile", "restore", "save", "evaluate", "redo")


class Goodput:
    """Seconds of this life by kind. What no kind claims is `other`: imports, the first step.

    train: steps, without waiting for batches (wait). compile, restore, save, evaluate: what the loop
    stood still for. redo: steps that a going back undid (train/spikes.py).
    """

    def __init__(self):
        self._started = time.perf_counter()
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._saved = 0.0  # of "train"

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
        """Training up to here is saved."""
        self._saved = self._seconds["train"]

    def undo(self) -> None:
        """Training since the last mark is to be done again."""
        self._seconds["redo"] += self._seconds["train"] - self._saved
        self._seconds["train"] = self._saved

    def record(self) -> dict[str, float]:
        """For metrics.jsonl: time/KIND in seconds since this life began, and perf/goodput, the
        share of training."""
        total = time.perf_counter() - self._started
        other = max(total - sum(self._seconds.values()), 0.0)
        found = {f"time/{kind}": round(seconds, 3) for kind, seconds in self._seconds.items()}
        return found | {"time/other": round(other, 3),
                        "perf/goodput": self._seconds["train"] / total}
