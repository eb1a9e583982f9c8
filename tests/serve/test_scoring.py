"""Turns of rows that are scored, without a model."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.inference.batching.fair_queue import Owner
from qwen_jax.inference.scoring import Row, Scores
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.scoring import ScoringQueue


class FakeScorer:
    """One slot; a row needs a step per token, and its score is the last token."""

    def __init__(self):
        self.running, self.order = {}, []

    @property
    def free_slots(self):
        return 1 - len(self.running)

    def check(self, row, where):
        if len(row.tokens) > 9:
            raise DataError("the row is long.", where, "cut it.")

    def put(self, key, row):
        self.running[key] = [row, 0]
        self.order.append(row.tokens)

    def drop(self, key):
        del self.running[key]

    def step(self):
        found = []
        for key, state in list(self.running.items()):
            state[1] += 1
            if state[1] == len(state[0].tokens):
                del self.running[key]
                found.append((key, Scores((float(state[0].tokens[-1]),), (True,))))
        return found


@pytest.fixture
def scorer():
    return FakeScorer()


@pytest.fixture
def queue(scorer):
    return ScoringQueue(lambda: scorer)


def drain(queue):
    found = []
    while queue.busy:
        found += queue.step()
    return found


def rows(*tokens):
    return [Row(one, ((0, 0),)) for one in tokens]


def test_clients_take_turns_and_rows_that_begin_alike_follow_one_another(queue, scorer):
    queue.add(rows((2, 1), (1, 1), (2, 0)), Owner("a", "first"))
    queue.add(rows((5, 1), (4, 1)), Owner("b", "second"))
    found = drain(queue)
    assert scorer.order == [(1, 1), (4, 1), (2, 0), (5, 1), (2, 1)]
    assert {(request, index) for request, index, _ in found} == {
        ("first", 0),
        ("first", 1),
        ("first", 2),
        ("second", 0),
        ("second", 1),
    }
    assert [scores.logprobs[0] for request, index, scores in found if index == 2] == [0.0]


def test_cancel_drops_waiting_and_running_rows(queue, scorer):
    owner, other = Owner("a", object()), Owner("a", object())
    queue.add(rows((1, 2, 3), (1, 3)), owner)
    queue.add(rows((7, 8)), other)
    assert queue.step() == []
    queue.cancel(owner.request)
    assert not scorer.running
    assert [result.request for result in drain(queue)] == [other.request]


def test_rows_that_cannot_be_scored_are_refused_together(queue):
    with pytest.raises(DataError, match="(?s)long.*prompt"):
        queue.add(rows((1,), (1,) * 10), Owner("a", 1))
    assert not queue.busy


def test_scores_that_are_not_finite_are_an_error(queue, scorer):
    queue.add(rows((float("nan"),)), Owner("a", 1))
    ((_, _, error),) = drain(queue)
    assert isinstance(error, ApiError) and error.code == "not_finite"


def test_failure_of_the_device_fails_all_rows_and_starts_anew(monkeypatch):
    made = []
    queue = ScoringQueue(lambda: made.append(FakeScorer()) or made[-1])
    queue.add(rows((1,), (2,)), Owner("a", 1))
    monkeypatch.setattr(made[0], "step", lambda: 1 / 0)
    assert [error.code for _, _, error in drain(queue)] == ["scorer_failed"] * 2
    queue.add(rows((3,)), Owner("a", 2))
    assert [result.scores.logprobs for result in drain(queue)] == [(3.0,)]
    assert len(made) == 2
