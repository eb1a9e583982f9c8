"""Parts of a claim: how much is run, cells that train and measure, and what they say."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

Verdict = Literal["holds", "does not show", "contradicted", "skipped"]
CONFIRMING = (100, 101, 102, 103, 104)  # settings were chosen on seeds 0 to 2 and then left alone


@dataclasses.dataclass(frozen=True)
class Form:
    """How much of an experiment is run."""

    name: Literal["smoke", "middle", "full"]
    seeds: tuple[int, ...]
    items: int  # held-out problems per cell
    share: float  # of the training steps of the full form

    def steps(self, full: int) -> int:
        """Returns the number of training steps of an arm that has `full` in the full form."""
        return max(4, round(full * self.share))

    def costly(self) -> "Form":
        """Returns the form for arms that take more than four minutes: at most three seeds."""
        return dataclasses.replace(self, seeds=self.seeds[:3])


FORMS = {
    "smoke": Form("smoke", (0,), items=24, share=0.02),
    "middle": Form("middle", CONFIRMING[:2], items=200, share=0.4),
    "full": Form("full", CONFIRMING, items=500, share=1.0),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm with one seed: a training run and its measurements. A claim resumes by cells."""

    arm: str
    seed: int
    run: Callable[[], dict[str, Any]]  # returns what is measured, as JSON
    tokens: int = 0  # that it trains on
    flops: float = 0.0  # of these tokens

    @property
    def name(self) -> str:
        return f"{self.arm.replace(' ', '_').replace('/', '_')}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a claim's table: one number of ours with its interval, and the report's."""

    name: str
    ours: float
    low: float
    high: float
    per_seed: tuple[float, ...] = ()
    report: str = ""  # what the report has in this place
    note: str = ""
    percent: bool = True  # whether the number is a share, shown as a percentage


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values over training, for a figure: one line per arm."""

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]  # arm -> points


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the cells say."""

    rows: Sequence[Row]
    verdict: Verdict
    interval: tuple[float, float] | None  # of the difference that decides
    why: str  # the decision in a sentence, and what was tried if the claim does not show
    curves: Sequence[Curve] = ()


Measured = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> what the cell returned


def verdict_of(low: float, high: float) -> Verdict:
    """Returns the verdict on a difference that the report says is above zero."""
    if low > 0:
        return "holds"
    return "contradicted" if high < 0 else "does not show"
