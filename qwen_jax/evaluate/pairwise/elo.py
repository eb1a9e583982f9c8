"""Elo ratings by the Bradley-Terry model, with bootstrap intervals.

Model i beats model j with probability 1 / (1 + 10 ** ((R_j - R_i) / 400)). The ratings are the
maximum-likelihood ones of all comparisons, so their order does not matter. A tie is half a win of
each. The mean rating is 1000.
"""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise.votes import Outcome, Vote, outcomes

SCALE = 400 / np.log(10)  # Elo points of one nat of log-odds
MEAN = 1000.0
_NO_WIDTH = 1e-6  # Elo points
_SCORES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}  # of Chatbot Arena


def elo(
    votes: Iterable[Vote | Outcome | Mapping[str, Any] | tuple],
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float, float]]:
    """Returns the rating of each model with the ends of its interval, the best model first.

    If no finite ratings exist because a model, or a group of them, never lost a comparison, one
    tie is added between every two models that met. The same holds within each bootstrap sample.

    The bootstrap knows only outcomes that were seen: of a single vote, of votes that all go one way
    and of ties only it has no width. There, and where ties were added, intervals are at least as
    wide as the likelihood's (from its second derivative, with the added ties).

    Args:
      votes: `Vote`s with names of models, `Outcome`s, tuples (first, second, winner) whose winner
        is a name, "tie", or the score of `first` (1, 0.5 or 0), or rows with "model_a", "model_b"
        and "winner" ("model_a", "model_b" or "tie").
      samples: bootstrap samples. A sample draws questions, with all their votes; tuples and rows
        without a "question" are drawn one by one.
      seed: of the bootstrap; equal votes in any order give equal ratings and intervals.
      confidence: probability of the interval, between percentiles of the samples.

    Raises:
      DataError: there are no comparisons, one is malformed, or the models fall into groups that
        were never compared with each other; names the groups.
    """
    compared = _sorted(votes)
    names = sorted({name for one in compared for name in one[:2]})
    wins = _tables(compared, names)
    total = wins.sum(0)
    met = total + total.T > 0
    _check_connected(met, names)
    ratings = _fit(total[None], met)[0]
    rng = np.random.default_rng(seed)
    sampled = np.empty((samples, len(names)))
    rows = max(1, 4_000_000 // len(wins))  # at a time: 32 MB
    for begin in range(0, samples, rows):
        number = min(rows, samples - begin)
        counts = rng.multinomial(len(wins), np.full(len(wins), 1 / len(wins)), number)
        sampled[begin : begin + number] = _fit(
            np.tensordot(counts.astype(np.float64), wins, 1), met
        )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(sampled, [tail, 100 - tail], axis=0)
    if not _has_finite(total[None])[0] or (high - low).min() < _NO_WIDTH:
        half = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * _errors(wins, ratings, met)
        low, high = np.minimum(low, ratings - half), np.maximum(high, ratings + half)
    order = sorted(range(len(names)), key=lambda i: (-ratings[i], names[i]))
    return {names[i]: (float(ratings[i]), float(low[i]), float(high[i])) for i in order}


def win_probability(first: float, second: float) -> float:
    """Returns the probability that a model rated `first` beats one rated `second`."""
    return float(1 / (1 + 10 ** ((second - first) / 400)))


def _sorted(votes: Iterable) -> list[Outcome]:
    """Returns the comparisons, with names in alphabetical order, in an order of their own."""
    found = []
    for number, vote in enumerate(votes):
        if isinstance(vote, Vote):
            found += [outcome for _, outcome in outcomes([vote])]
        else:
            found.append(vote if isinstance(vote, Outcome) else _parse(vote, number))
    if not found:
        raise DataError("there are no comparisons.", "elo(votes)", "pass one or more votes.")
    for one in found:
        if one.first == one.second:
            raise DataError(
                f"{one.first!r} is compared with itself.", "elo(votes)", "name two models."
            )
    return sorted(
        one if one.first < one.second else Outcome(one.second, one.first, 1 - one.score, one.group)
        for one in found
    )


def _tables(compared: list[Outcome], names: list[str]) -> np.ndarray:
    """Returns the wins [G, M, M] of each group; a comparison without a group is one of its own."""
    index = {name: i for i, name in enumerate(names)}
    keys = [one.group or number for number, one in enumerate(compared)]
    groups = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    wins = np.zeros((len(groups), len(names), len(names)))
    for key, (first, second, score, _) in zip(keys, compared, strict=True):
        wins[groups[key], index[first], index[second]] += score
        wins[groups[key], index[second], index[first]] += 1 - score
    return wins


def _parse(vote: Any, number: int) -> Outcome:
    """Returns the outcome of a tuple or row."""
    group = ""
    try:
        if isinstance(vote, Mapping):
            first, second, winner = vote["model_a"], vote["model_b"], vote["winner"]
            group = str(vote.get("question") or "")
        else:
            first, second, winner = vote
        if isinstance(winner, str):
            score = 1.0 if winner == first else 0.0 if winner == second else _SCORES[winner]
        else:
            score = float(winner)
        if score not in (0, 0.5, 1):
            raise ValueError(f"a score of {score}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"not a comparison: {str(vote)[:80]!r} ({type(error).__name__}: {error}).",
            f"elo(votes), vote {number}",
            'pass (first, second, winner), or rows with "model_a", "model_b" and "winner".',
        ) from error
    return Outcome(str(first), str(second), score, group)


def _check_connected(met: np.ndarray, names: list[str]) -> None:
    connected = _closure(met[None])[0] | np.eye(len(met), dtype=bool)
    parts = {tuple(np.flatnonzero(row)) for row in connected}
    if len(parts) > 1:
        shown = "; ".join(", ".join(names[i] for i in part) for part in sorted(parts))
        raise DataError(
            f"the models fall into {len(parts)} groups that were never compared: {shown}.",
            "elo(votes)",
            "add votes that compare models of different groups, or rate the groups separately.",
        )


def _closure(edges: np.ndarray) -> np.ndarray:
    """Returns which nodes reach which, of graphs bool [R, M, M]."""
    reachable = edges.copy()
    for _ in range(max(1, int(np.ceil(np.log2(max(edges.shape[-1], 2)))))):
        reachable |= np.matmul(reachable.astype(np.float32), reachable.astype(np.float32)) > 0
    return reachable


def _has_finite(wins: np.ndarray) -> np.ndarray:
    """Returns bool [R]: a finite maximum exists if every model reaches every other through wins."""
    return (_closure(wins > 0) | np.eye(wins.shape[-1], dtype=bool)).all((1, 2))


def _errors(wins: np.ndarray, ratings: np.ndarray, met: np.ndarray) -> np.ndarray:
    """Returns the standard error [M] of each rating, from the curvature of the likelihood.

    Args:
      wins: [G, M, M] of each question. Votes of one question on two models count as one.
    """
    games = wins + wins.swapaxes(1, 2)
    once = (games / np.maximum(games, 1)).sum(0)
    once = once + met * (0.0 if _has_finite(wins.sum(0)[None])[0] else 1.0)
    apart = (ratings[:, None] - ratings) / SCALE
    weight = once / (np.exp(apart / 2) + np.exp(-apart / 2)) ** 2
    information = np.diag(weight.sum(1)) - weight
    return SCALE * np.sqrt(np.diag(np.linalg.pinv(information)))  # the mean rating is fixed


def _fit(wins: np.ndarray, met: np.ndarray) -> np.ndarray:
    """Returns ratings [R, M] of tables of wins [R, M, M], by Newton's method.

    Args:
      met: bool [M, M], which models were ever compared.
    """
    size = wins.shape[-1]
    wins = wins + np.where(_has_finite(wins), 0.0, 0.5)[:, None, None] * met
    games = wins + wins.swapaxes(1, 2)
    ratings = np.zeros(wins.shape[:2])
    for _ in range(200):
        expected = 1 / (1 + np.exp(ratings[:, None, :] - ratings[:, :, None]))
        gradient = (wins - games * expected).sum(2)
        weight = games * expected * (1 - expected)
        # The likelihood does not depend on the mean: the added constant keeps it at 0.
        hessian = np.eye(size) * weight.sum(2)[:, :, None] - weight + 1 / size
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        step /= np.maximum(1, np.abs(step).max(1, keepdims=True) / 2)  # far away, it overshoots
        ratings += step
        if np.abs(step).max() < 1e-10:
            break
    return MEAN + SCALE * (ratings - ratings.mean(1, keepdims=True))
