"""Agreement of a reward model with human preferences: accuracy (Table 4), margins, calibration.

Report: 3.2.1, Table 4.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from qwen_jax.align.reward_model import margins
from qwen_jax.config import ModelConfig
from qwen_jax.parallel.batch_rows import on_host
from qwen_jax.types import PairBatch, ScoringParams

_margins = jax.jit(margins, static_argnames="config")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Reward margins of a reward model on one data set."""

    name: str
    margins: np.ndarray  # float32 [pairs]; reward(chosen) - reward(rejected)

    @property
    def accuracy(self) -> float:
        """The fraction of pairs whose chosen response has the higher reward; ties count half."""
        return float(np.mean((np.sign(self.margins) + 1) / 2))

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the accuracy: at most 0.5 / sqrt(pairs)."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / len(self.margins)))

    def calibration(self, bins: int = 10) -> list[tuple[float, float, int]]:
        """Returns (mean confidence, accuracy, number of pairs) per confidence bin from 0.5 to 1.

        Confidence is sigmoid(|margin|): the probability that the model assigns to the response it
        prefers.
        """
        confidence = 1 / (1 + np.exp(-np.abs(self.margins)))
        right = (np.sign(self.margins) + 1) / 2
        bin_of = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
        return [
            (
                float(confidence[bin_of == b].mean()),
                float(right[bin_of == b].mean()),
                int((bin_of == b).sum()),
            )
            for b in range(bins)
            if (bin_of == b).any()
        ]


def measure(
    name: str,
    params: ScoringParams,
    batches: Iterable[PairBatch],
    *,
    config: ModelConfig,
    put: Callable[[PairBatch], PairBatch],
) -> Agreement:
    """Returns the margins of all pairs, excluding the padding of the last batch."""
    chunks = []
    for pairs in batches:
        placed = put(pairs)
        values, weights = on_host((_margins(params, placed, config=config), placed.weights))
        chunks.append(values[weights > 0])
    return Agreement(name, np.concatenate(chunks))


def table(rows: Sequence[tuple[str, Sequence[Agreement]]]) -> str:
    """Returns Table 4: one line per model, one column per data set.

    A cell is the accuracy and its standard error, both in percent.
    """
    names = [agreement.name for agreement in rows[0][1]]
    widths = [max(len(name), 12) for name in names]
    first = max(len(label) for label, _ in rows)
    lines = [
        " " * first + "  " + "  ".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True))
    ]
    for label, agreements in rows:
        cells = [f"{100 * a.accuracy:.2f} ±{100 * a.standard_error:.1f} %" for a in agreements]
        lines.append(
            f"{label:<{first}}  "
            + "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        )
    lines.append(
        " " * first
        + "  "
        + "  ".join(
            f"{f'{len(a.margins)} pairs':>{w}}" for a, w in zip(rows[0][1], widths, strict=True)
        )
    )
    return "\n".join(lines)
