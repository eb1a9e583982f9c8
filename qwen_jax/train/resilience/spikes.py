"""Detects loss spikes, and defines the exception that triggers a rollback.

A rollback (train.on_spike=skip) restores the latest checkpoint and skips the batches up to the
spike, as PaLM and later runs did. Every checkpoint stores the number of skipped batches and the
recent losses, so a resumed run reads the same batches and detects the same spikes.
"""

import math
from collections.abc import Sequence


class LossSpike(Exception):
    """Requests a rollback. The reporter raises it in every process."""

    def __init__(self, step: int, message: str):
        super().__init__(f"step {step}: {message}")
        self.step, self.message = step, message


class SpikeWatch:
    """Detects a loss far above its recent range."""

    def __init__(self, recent: Sequence[float] = (), *, window: int = 64, deviations: float = 6.0):
        """
        Args:
          recent: losses of previous steps: the attribute `recent` of an earlier SpikeWatch.
          window: number of losses to remember.
          deviations: a loss this many standard deviations above the mean is a spike.
        """
        self.recent = list(recent)
        self._window, self._deviations = window, deviations

    def see(self, loss: float) -> str | None:
        """Records `loss`; returns a message if it is a spike, else None."""
        recent, message = self.recent, None
        if not math.isfinite(loss):
            return f"loss {loss} is not finite"
        if len(recent) >= 16:
            mean = sum(recent) / len(recent)
            spread = math.sqrt(sum((x - mean) ** 2 for x in recent) / len(recent))
            if loss > mean + self._deviations * max(spread, 0.01 * abs(mean)):
                message = f"loss {loss:.4f} spikes above {mean:.4f} +- {spread:.4f}"
        recent.append(loss)
        del recent[: -self._window]
        return message
