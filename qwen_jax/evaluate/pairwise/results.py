"""Results of votes: win rates, ratings, agreement. Report: 3.3, Figure 4."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise import agreement, win_rates
from qwen_jax.evaluate.pairwise.elo import elo, win_probability
from qwen_jax.evaluate.pairwise.figure import draw_win_rates
from qwen_jax.evaluate.pairwise.questions import CATEGORIES
from qwen_jax.evaluate.pairwise.votes import Vote
from qwen_jax.grading.statistics import wilson
from qwen_jax.utils.files import write_bytes, write_json, write_text


def summarize(
    votes: Sequence[Vote], baseline: str, *, judge: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str, list[win_rates.WinRate]]:
    """Returns (content of results.json, Markdown, win rates) of votes with names of models.

    Args:
      judge: a judge's counts and its agreement with people, to be included.

    Raises:
      ConfigError: no vote has the baseline.
    """
    if not votes:
        raise DataError("there are no votes.", "--votes", "pass files that the page saved.")
    used = {vote.category for vote in votes}
    listed = [name for name in CATEGORIES if name in used]
    rates = win_rates.win_rates(votes, baseline, categories=listed)
    found = agreement.agreement(votes)
    kappas = agreement.kappas(votes)
    per_rater = collections.Counter(vote.rater for vote in votes)
    results: dict[str, Any] = {
        "baseline": baseline,
        "votes": len(votes),
        "questions": len({vote.question for vote in votes}),
        "raters": dict(per_rater),
        "win_rates": [dataclasses.asdict(one) for one in rates],
        "agreement": found._asdict(),
        "kappa": [
            {"raters": list(pair), "items": items, "raw": raw, "kappa": kappa}
            for pair, (items, raw, kappa) in kappas.items()
        ],
        "first_shown": _first_shown(votes),
    }
    parts = [_heading(results), win_rates.table(rates)]
    try:
        ratings = elo(votes)
        results["elo"] = {name: list(values) for name, values in ratings.items()}
        parts.append(_ratings_table(ratings))
    except DataError as error:  # some models were never compared: the rates are still right
        results["elo"] = None
        parts.append(f"No Elo ratings: {error.what}")
    parts.append(_agreement_lines(found, kappas, results["first_shown"]))
    if judge is not None:
        results["judge"] = judge
        parts.append(_judge_line(judge))
    return results, "\n\n".join(parts) + "\n", rates


def write_results(
    folder: pathlib.Path, results: dict[str, Any], text: str, rates: list[win_rates.WinRate]
) -> None:
    """Writes results.json, results.md and win_rates.png.

    Raises:
      ConfigError: Matplotlib is not installed; the other files are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    write_text(folder / "results.md", text)
    write_bytes(folder / "win_rates.png", draw_win_rates(rates))


def _heading(results: dict[str, Any]) -> str:
    raters = ", ".join(f"{name} {number}" for name, number in sorted(results["raters"].items()))
    return (
        f"{results['votes']:,} votes on {results['questions']:,} questions by "
        f"{len(results['raters'])} raters ({raters}). Shares in percent; 95 % intervals from a "
        "bootstrap of questions."
    )


def _ratings_table(ratings: dict[str, tuple[float, float, float]]) -> str:
    best = next(iter(ratings))
    lines = [
        f"| model | Elo | 95 % interval | wins against {best} |",
        "|---|---:|---|---:|",
    ]
    for name, (rating, low, high) in ratings.items():
        share = "" if name == best else f"{win_probability(rating, ratings[best][0]):.0%}"
        lines.append(f"| {name} | {rating:.0f} | {low:.0f} to {high:.0f} | {share} |")
    return "\n".join(lines)


def _agreement_lines(found: agreement.Agreement, kappas: dict, first: dict[str, Any]) -> str:
    if found.raw is None:
        lines = ["Agreement: no question was judged by two raters."]
    else:
        lines = [
            f"Agreement of {found.raters} raters on {found.items:,} comparisons: "
            f"{found.raw:.1%} raw, {found.unanimous:.1%} unanimous, Krippendorff's alpha "
            f"{_number(found.alpha)}."
        ]
        lines += [
            f"- {a} and {b}: {raw:.1%} of {items:,}, Cohen's kappa {_number(kappa)}"
            for (a, b), (items, raw, kappa) in kappas.items()
        ]
    if first["decided"]:
        low, high = first["interval"]
        lines.append(
            f"\nThe answer that was shown first won {first['share']:.1%} of {first['decided']:,} "
            f"decided comparisons ({low:.1%} to {high:.1%})."
        )
    return "\n".join(lines)


def _judge_line(judge: dict[str, Any]) -> str:
    agreed = judge["agreement"]
    shown = "no common comparison" if agreed is None else f"{agreed:.1%} of {judge['compared']:,}"
    return f"Judge {judge['model']}: {judge['counts']}. Agreement with people's votes: {shown}."


def _first_shown(votes: Sequence[Vote]) -> dict[str, Any]:
    wins, decided = win_rates.first_shown(votes)
    if not decided:
        return {"decided": 0, "share": None, "interval": None}
    share, low, high = wilson(wins, decided)
    return {"decided": decided, "share": share, "interval": [low, high]}


def _number(value: float | None) -> str:
    return "undefined (all labels are equal)" if value is None else f"{value:.3f}"
