"""Ratings: known values, invariances, coverage of the interval, and what has no finite rating."""

import numpy as np
import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise.elo import elo, win_probability
from qwen_jax.evaluate.pairwise.votes import Vote


def games(rng, ratings, number):
    """Comparisons of random pairs, with the probabilities of the ratings."""
    names = sorted(ratings)
    for _ in range(number):
        first, second = rng.choice(names, 2, replace=False)
        wins = rng.random() < win_probability(ratings[first], ratings[second])
        yield str(first), str(second), str(first if wins else second)


def test_elo_of_three_wins_in_four_is_190_85_points():
    found = elo([("a", "b", "a")] * 75 + [("a", "b", "b")] * 25)
    assert list(found) == ["a", "b"]
    assert found["a"][0] - found["b"][0] == pytest.approx(400 * np.log10(3), abs=1e-9)
    assert found["a"][0] + found["b"][0] == pytest.approx(2000)
    assert found["a"][1] < found["a"][0] < found["a"][2]


def test_a_tie_is_half_a_win_of_each():
    ties = elo([("a", "b", 1)] * 2 + [("a", "b", "tie")] * 4 + [("a", "b", 0)] * 1)
    halves = elo([("a", "b", 1)] * 4 + [("a", "b", 0)] * 3)
    assert ties["a"][0] == pytest.approx(halves["a"][0])


def test_elo_does_not_depend_on_order_or_names():
    rng = np.random.default_rng(0)
    votes = list(games(rng, {"a": 1100, "b": 1000, "c": 900}, 300))
    found = elo(votes)
    assert elo(reversed(votes)) == found
    assert elo([(b, a, winner) for a, b, winner in votes]) == found
    other = {"a": "z", "b": "m", "c": "k"}
    renamed = elo([(other[a], other[b], other[winner]) for a, b, winner in votes])
    for name, (rating, low, high) in found.items():
        assert renamed[other[name]][0] == pytest.approx(rating)
        assert renamed[other[name]][1:] == pytest.approx((low, high), abs=8)  # other samples
    assert elo(votes, seed=1)["a"][1] != found["a"][1]


def test_interval_covers_the_true_difference():
    """200 simulations: binomial with p = 0.95 has 190 and a deviation of 3.1."""
    rng, truth, covered = np.random.default_rng(1), {"a": 1050, "b": 1000, "c": 950}, 0
    for _ in range(200):
        _, low, high = elo(games(rng, truth, 200), samples=200)["a"]
        covered += low <= 1050 <= high
    assert 180 <= covered <= 199


def test_votes_on_one_question_are_drawn_together():
    def votes(question):
        for number in range(40):
            better = (("a",), ("b",)) if number % 4 else (("b",), ("a",))
            for rater in range(10):
                yield Vote(question(number, rater), "x", f"r{rater}", better)

    clustered = elo(votes(lambda number, rater: f"q{number}"))
    separate = elo(votes(lambda number, rater: f"q{number}/{rater}"))
    assert clustered["a"][0] == pytest.approx(separate["a"][0])
    width = {name: one["a"][2] - one["a"][1] for name, one in
             (("clustered", clustered), ("separate", separate))}  # fmt: skip
    assert width["clustered"] > 2.5 * width["separate"]  # the square root of 10 votes each


@pytest.mark.parametrize(
    "votes",
    [
        [("a", "b", 1)],
        [("a", "b", "tie")],
        [("a", "b", 1)] * 10,
        [("a", "b", "tie")] * 10,
        [("a", "b", 1)] * 10 + [("b", "c", 1), ("b", "c", 0)] * 5,
    ],
)
def test_interval_has_a_width_and_is_finite(votes):
    """The bootstrap of votes that are all the same has none."""
    found = elo(votes)
    assert np.isfinite(list(found.values())).all()
    for rating, low, high in found.values():
        assert low < rating - 40 and rating + 40 < high and high - low < 2000


def test_interval_of_a_single_vote_is_the_likelihoods_with_one_tie():
    rating, low, high = elo([("a", "b", 1)])["a"]
    # 1.5 wins to 0.5: a difference of log 3, information 2 * 3/4 * 1/4; a rating is half of it.
    assert rating - 1000 == pytest.approx(200 * np.log10(3))
    half = 1.959964 / 2 / np.sqrt(2 * 3 / 16) * 400 / np.log(10)
    assert (rating - low, high - rating) == pytest.approx((half, half), rel=1e-6)
    assert low < 1000 < high  # one vote does not say which model is better
    # Ten raters of one question are one question.
    raters = [Vote("q", "x", f"r{i}", (("a",), ("b",))) for i in range(10)]
    low, high = elo(raters)["a"][1:]
    assert high - low >= 2 * half
    assert elo([("a", "b", 1)] * 10)["a"][1] > 1000  # ten questions do


def test_a_model_that_never_loses_has_a_finite_rating():
    found = elo([("a", "b", 1)] * 10 + [("b", "c", 1)] * 10)
    assert list(found) == ["a", "b", "c"] and np.isfinite(list(found.values())).all()
    # One tie is added: 10.5 wins to 0.5.
    assert found["a"][0] - found["b"][0] == pytest.approx(400 * np.log10(10.5 / 0.5))
    nearly = elo([("a", "b", 1)] * 9 + [("b", "a", 1)] + [("b", "c", 1)] * 10)
    assert nearly["a"][0] - nearly["b"][0] < found["a"][0] - found["b"][0]


def test_elo_names_groups_that_were_never_compared():
    with pytest.raises(DataError, match="2 groups that were never compared: a, b; c, d"):
        elo([("a", "b", 1), ("c", "d", 0)])


def test_elo_reads_rankings_and_rows_of_the_arena():
    ranking = Vote("q", "x", "r", (("a",), ("b", "c")))
    assert elo([ranking]) == elo(
        [
            {"model_a": "a", "model_b": "b", "winner": "model_a", "question": "q"},
            {"model_a": "c", "model_b": "a", "winner": "model_b", "question": "q"},
            {"model_a": "c", "model_b": "b", "winner": "tie", "question": "q"},
        ]
    )


@pytest.mark.parametrize(
    "votes, problem",
    [
        ([], "no comparisons"),
        ([("a", "a", 1)], "compared with itself"),
        ([("a", "b", 2)], "a score of 2"),
        ([("a", "b", "nobody")], "vote 0"),
        ([("a", "b", 1), ("a", "b")], "vote 1"),
        ([{"model_a": "a"}], "model_b"),
    ],
    ids=range(6),
)
def test_elo_refuses_what_is_no_comparison(votes, problem):
    with pytest.raises(DataError, match=problem):
        elo(votes)
