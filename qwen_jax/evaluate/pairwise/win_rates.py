"""Win, tie and loss of each model against a baseline, by category. Report: 3.3, Figure 4."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qwen_jax.errors import unknown_name
from qwen_jax.evaluate.pairwise.votes import Vote, outcomes
from qwen_jax.grading.statistics import Interval

OVERALL = "overall"


@dataclasses.dataclass(frozen=True)
class WinRate:
    """A model against the baseline, in one category or overall.

    Attributes:
      questions: number of questions with votes.
      counts: votes for the model, ties, and votes for the baseline.
      win, tie, loss: shares of the votes, from 0 to 1, with intervals; None without votes.
      score: share of wins, a tie being half a win; None without votes.
    """

    model: str
    baseline: str
    category: str
    questions: int
    counts: tuple[int, int, int]
    win: Interval | None
    tie: Interval | None
    loss: Interval | None
    score: Interval | None

    @property
    def votes(self) -> int:
        return sum(self.counts)


def win_rates(
    votes: Iterable[Vote],
    baseline: str,
    *,
    categories: Sequence[str] = (),
    samples: int = 1000,
    seed: int = 0,
) -> list[WinRate]:
    """Returns the rates of each model but the baseline, in each category and overall.

    Intervals are between the 2.5 and 97.5 percentiles of a bootstrap that draws questions, because
    the votes on one question are not independent.

    Args:
      votes: with names of models.
      categories: those to list, also without votes; by default those of the votes.
      samples: bootstrap samples.
      seed: of the bootstrap; equal votes in any order give equal intervals.

    Raises:
      ConfigError: no vote has the baseline.
    """
    votes = list(votes)
    known = {name for vote in votes for group in vote.ranking for name in group}
    if baseline not in known:
        raise unknown_name("baseline", baseline, known, "--baseline")
    # model -> category -> question -> [wins, ties, losses]
    tables: dict[str, dict[str, dict[str, list[int]]]] = {}
    for vote, (first, second, score, _) in outcomes(votes):
        if baseline not in (first, second):
            continue
        model, score = (first, score) if second == baseline else (second, 1 - score)
        for category in {vote.category, OVERALL}:
            by_question = tables.setdefault(model, {}).setdefault(category, {})
            # Two questions of different categories may not be merged in the overall row.
            key = f"{vote.category}\0{vote.question}"
            by_question.setdefault(key, [0, 0, 0])[int(2 - 2 * score)] += 1
    found = [vote.category for vote in votes]
    listed = [*dict.fromkeys([*categories, *sorted(set(found))]), OVERALL]
    return [
        _rate(model, baseline, category, tables[model].get(category, {}), samples, seed)
        for model in sorted(tables)
        for category in listed
    ]


def _rate(
    model: str,
    baseline: str,
    category: str,
    table: Mapping[str, list[int]],
    samples: int,
    seed: int,
) -> WinRate:
    if not table:
        return WinRate(model, baseline, category, 0, (0, 0, 0), None, None, None, None)
    counts = np.asarray([table[question] for question in sorted(table)], np.float64)  # [Q, 3]
    rng = np.random.default_rng(seed)
    questions = len(counts)
    sums = np.empty((samples, 3))
    rows = max(1, 4_000_000 // questions)
    for begin in range(0, samples, rows):
        number = min(rows, samples - begin)
        drawn = rng.multinomial(questions, np.full(questions, 1 / questions), number)
        sums[begin : begin + number] = drawn @ counts
    shares = sums / sums.sum(1, keepdims=True)
    total = counts.sum(0)
    estimates = total / total.sum()
    shown = [_interval(estimates[i], shares[:, i]) for i in range(3)]
    score = _interval(estimates[0] + estimates[1] / 2, shares[:, 0] + shares[:, 1] / 2)
    wins, ties, losses = (int(n) for n in total)
    return WinRate(
        model, baseline, category, questions, (wins, ties, losses), shown[0], shown[1], shown[2],
        score,
    )  # fmt: skip


def _interval(estimate: float, samples: np.ndarray) -> Interval:
    low, high = np.percentile(samples, [2.5, 97.5])
    return Interval(float(estimate), float(low), float(high))


def table(rates: Sequence[WinRate]) -> str:
    """Returns a Markdown table in percent, with 95 % intervals; "—" in rows without votes."""
    lines = [
        "| model | against | category | questions | votes | win | tie | loss | win + tie / 2 |",
        "|---|---|---|---:|---:|---|---|---|---|",
    ]
    for one in rates:
        cells = [_percent(value) for value in (one.win, one.tie, one.loss, one.score)]
        lines.append(
            f"| {_cell(one.model)} | {_cell(one.baseline)} | {_cell(one.category)} | "
            f"{one.questions} | {one.votes} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _percent(value: Interval | None) -> str:
    if value is None:
        return "—"
    return f"{100 * value.estimate:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def first_shown(votes: Iterable[Vote]) -> tuple[int, int]:
    """Returns (wins, decided comparisons) of the answer that was shown before the other one.

    Of fair raters, half of the decided comparisons are won by it.
    """
    counts: collections.Counter[bool] = collections.Counter()
    for vote, (first, second, score, _) in outcomes(vote for vote in votes if vote.shown):
        if score != 0.5:
            earlier = vote.shown.index(first) < vote.shown.index(second)
            counts[earlier == (score == 1)] += 1
    return counts[True], counts.total()
