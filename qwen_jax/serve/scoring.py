"""Prompts and completions whose log-probabilities clients wait for, in the engine's thread.

Rows take turns like completions (fair_queue.py): a client with fewer rows in the scorer comes
first. The scorer has a cache of its own, which is allocated for the first row.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from qwen_jax.errors import QwenJaxError
from qwen_jax.inference.batching.fair_queue import FairQueue, Owner
from qwen_jax.inference.scoring import Row, Scorer, Scores
from qwen_jax.serve.errors import ApiError


class Result(NamedTuple):
    """The scores of a row, or why there are none."""

    request: Any
    index: int  # of the row in its request
    scores: Scores | ApiError


@dataclasses.dataclass
class _Item:
    id: int
    owner: Owner
    index: int
    row: Row


class ScoringQueue:
    """Scores rows of many clients; used by one thread.

    Args:
      make_scorer: returns the scorer; called once, for the first row.
    """

    def __init__(self, make_scorer: Callable[[], Scorer]):
        self._make_scorer, self._scorer = make_scorer, None
        self._waiting: FairQueue[_Item] = FairQueue()
        self._running: dict[int, _Item] = {}
        self._ids = itertools.count()

    @property
    def busy(self) -> bool:
        """Whether a row waits or is being scored."""
        return bool(self._waiting or self._running)

    def add(self, rows: Sequence[Row], owner: Owner) -> None:
        """Adds the rows of a request. Those that begin alike follow one another.

        Args:
          owner: the client and its request, which the results name.

        Raises:
          QwenJaxError: a row cannot be scored, or the scorer's cache does not fit.
        """
        if self._scorer is None:
            self._scorer = self._make_scorer()
        for row in rows:
            self._scorer.check(row, "prompt")
        for index in sorted(range(len(rows)), key=lambda index: rows[index].tokens):
            self._waiting.append(_Item(next(self._ids), owner, index, rows[index]))

    def cancel(self, request) -> None:
        """Drops the rows of a request, those that are being scored included."""
        for item in [item for item in self._waiting if item.owner.request is request]:
            self._waiting.remove(item.id)
        for item in [item for item in self._running.values() if item.owner.request is request]:
            del self._running[item.id]
            assert self._scorer is not None
            self._scorer.drop(item.id)

    def step(self) -> list[Result]:
        """Computes a chunk of the rows whose turn it is; returns those that are complete.

        If the device fails, as without memory, all rows fail, and the next one allocates anew.
        """
        try:
            return self._step()
        except Exception as error:  # any type: the engine is unaffected
            failed = [*self._waiting, *self._running.values()]
            self._waiting, self._running, self._scorer = FairQueue(), {}, None
            return [Result(one.owner.request, one.index, refusal(error)) for one in failed]

    def _step(self) -> list[Result]:
        assert self._scorer is not None, "nothing was added"
        while self._waiting and self._scorer.free_slots:
            item = self._waiting.first(Counter(one.owner.client for one in self._running.values()))
            self._waiting.take(item)
            self._running[item.id] = item
            self._scorer.put(item.id, item.row)
        results = []
        for key, scores in self._scorer.step():
            item = self._running.pop(key)
            finite = np.all(np.isfinite(scores.logprobs))
            results.append(
                Result(item.owner.request, item.index, scores if finite else _not_finite())
            )
        return results


def refusal(error: Exception) -> ApiError:
    """Returns the response to a request whose rows were not accepted."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QwenJaxError):
        return ApiError(error.what, "", error.fix)
    logging.error("cannot start scoring: %s", error)
    return ApiError(
        f"the server cannot compute log-probabilities of given tokens: {type(error).__name__}.",
        fix="see the server's log; the first such request allocates a second cache.",
        status=500,
        code="scorer_failed",
    )


def _not_finite() -> ApiError:
    return ApiError(
        "a log-probability is not finite.",
        fix="check the weights of the model.",
        status=500,
        code="not_finite",
    )
