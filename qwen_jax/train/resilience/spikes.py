"""A loss that leaps out of its range: told, or gone back from with the batches left out.

Going back (train.on_spike=skip) takes the newest checkpoint and leaves out the batches from there
to the spike, as PaLM's and later runs did. How many batches were left out so far is in every
checkpoint, and so are the losses that the watch remembers: a run that is stopped and goes on sees
the same batches and the same spikes.
"""

import math
from collections.abc import Sequence


class LossSpike(Exception):
    """The run is to go back: raised by the reporter, the same in every process."""

    def __init__(self, step: int, message: str):
        super().__init__(f"step {step}: {message}")
        self.step, self.message = step, message


class SpikeWatch:
    """Names a loss that leaps out of its recent range."""

    def __init__(self, recent: Sequence[float] = (), *, window: int = 64, deviations: float = 6.0):
        """
        Args:
          recent: the losses of the steps before, as `recent` gives them.
        """
        self.recent = list(recent)
        self._window, self._deviations = window, deviations

    def see(self, loss: float) -> str | None:
        """A sentence when `loss` is a spike, else None."""
        recent, message = self.recent, None
        if not math.isfinite(loss):
            return f"loss {loss} is not finite"
        if len(recent) >= 16:
            mean = sum(recent) / len(recent)
            spread = math.sqrt(sum((x - mean) ** 2 for x in recent) / len(recent))
            if loss > mean + self._deviations * max(spread, 0.01 * abs(mean)):
                message = f"loss {loss:.4f} leaps out of {mean:.4f} +- {spread:.4f}"
        recent.append(loss)
        del recent[: -self._window]
        return message
