"""How often raters agree: raw, and beyond chance. Report: 3.3, which has three raters.

An item is a question with two answers; its label is win, tie or loss of the first one by name.
"""

import collections
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qwen_jax.evaluate.pairwise.votes import Vote, outcomes

Items = Mapping[tuple[str, str, str], Mapping[str, float]]  # item -> rater -> label


class Agreement(NamedTuple):
    """Agreement of raters on the items that two or more of them judged.

    `raw` is the share of pairs of raters with the same label, each item counting equally.
    `unanimous` is the share of items on which all agree. `alpha` is Krippendorff's alpha for
    nominal labels: 1 is perfect, 0 is chance. Values are None if there is no such item, and alpha
    also if all labels are equal.
    """

    items: int
    raters: int
    raw: float | None
    unanimous: float | None
    alpha: float | None


def items_of(votes: Iterable[Vote]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Returns the raters' labels of each item: 1, 0.5 or 0."""
    items: dict[tuple[str, str, str], dict[str, float]] = collections.defaultdict(dict)
    for vote, (first, second, score, _) in outcomes(votes):
        items[vote.question, first, second][vote.rater] = score
    return dict(items)


def agreement(votes: Iterable[Vote]) -> Agreement:
    """Returns the agreement of all raters."""
    items = {item: labels for item, labels in items_of(votes).items() if len(labels) > 1}
    raters = {rater for labels in items.values() for rater in labels}
    if not items:
        return Agreement(0, 0, None, None, None)
    same = [_same(labels.values()) for labels in items.values()]
    unanimous = sum(len(set(labels.values())) == 1 for labels in items.values())
    return Agreement(
        len(items), len(raters), sum(same) / len(same), unanimous / len(items), _alpha(items)
    )


def kappas(votes: Iterable[Vote]) -> dict[tuple[str, str], tuple[int, float, float | None]]:
    """Returns (number of common items, raw agreement, Cohen's kappa) of each pair of raters.

    Kappa is None if chance agreement is 1: both raters always gave one and the same label.
    """
    labels = items_of(votes)
    raters = sorted({rater for one in labels.values() for rater in one})
    found = {}
    for first, second in itertools.combinations(raters, 2):
        both = [(one[first], one[second]) for one in labels.values() if {first, second} <= set(one)]
        if both:
            found[first, second] = (len(both), *cohen(both))
    return found


def cohen(pairs: list[tuple[Any, Any]]) -> tuple[float, float | None]:
    """Returns (raw agreement, Cohen's kappa) of pairs of labels; at least one pair."""
    raw = sum(a == b for a, b in pairs) / len(pairs)
    first = collections.Counter(a for a, _ in pairs)
    second = collections.Counter(b for _, b in pairs)
    chance = sum(first[label] * second[label] for label in first) / len(pairs) ** 2
    return raw, None if chance == 1 else (raw - chance) / (1 - chance)


def _same(labels: Iterable[float]) -> float:
    """Returns the share of pairs of raters with the same label."""
    counts = collections.Counter(labels)
    total = counts.total()
    return sum(n * (n - 1) for n in counts.values()) / (total * (total - 1))


def _alpha(items: Items) -> float | None:
    """Returns Krippendorff's alpha; each value weighs the same, whatever its item's raters."""
    values = collections.Counter(label for labels in items.values() for label in labels.values())
    total = values.total()
    observed = sum((1 - _same(labels.values())) * len(labels) for labels in items.values()) / total
    expected = 1 - sum(n * (n - 1) for n in values.values()) / (total * (total - 1))
    return None if expected == 0 else 1 - observed / expected
