"""The slots of a Scorer: what of a row is in the cache, and which chunk comes next. Report: 2.6.

This part of scoring runs on the host. A row is split into chunks at fixed positions; a chunk with
its scores is reused by the next row of the slot that begins alike.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.inference.batching.scheduler import same_rotation

CHUNK = 64
MAX_TOP = 20  # alternatives of a position, as many as OpenAI has
# Scored tokens of a chunk: none, those of a choice of letters, or all.
LEVELS = (0, 4, CHUNK)


@dataclasses.dataclass(frozen=True)
class Row:
    """Tokens, and next tokens to score after some of them.

    Attributes:
      tokens: ids, at least one; the last scored token need not be among them.
      scored: pairs (position, id): the log-probability of `id` after tokens[: position + 1].
      top: most likely ids to return at each scored position, 0 to MAX_TOP.
      prompt_length: tokens of the prompt, which determines the rotation (dynamic NTK, report 2.5);
        None: all.
    """

    tokens: tuple[int, ...]
    scored: tuple[tuple[int, int], ...]
    top: int = 0
    prompt_length: int | None = None

    @property
    def rotated_as(self) -> int:
        """The length that determines the rotation."""
        return len(self.tokens) if self.prompt_length is None else self.prompt_length


@dataclasses.dataclass(frozen=True)
class Scores:
    """Natural log-probabilities of a row's scored ids, and whether each was the most likely id.

    Attributes:
      logprobs: float32.
      most_likely: among equal ids, the lowest is it.
      top: for each scored id, the row's `top` most likely ids there with their log-probabilities,
        in descending order; empty if the row's `top` is 0.
    """

    logprobs: tuple[float, ...]
    most_likely: tuple[bool, ...]
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


class _Scored:
    """The scored pairs of a chunk, and their results as far as they are computed."""

    def __init__(self, pairs: list[tuple[int, int]], top: int):
        self.pairs, self.with_top = pairs, top > 0  # pairs are (position in the row, id)
        self.logprobs: list[float] = []
        self.likely: list[bool] = []
        self.top: list[tuple[tuple[int, float], ...]] = []

    def same(self, other: "_Scored") -> bool:
        """Whether the results of `other` are those of these pairs, to the last bit.

        Other pairs may be computed by another program, which rounds differently.
        """
        return not self.pairs or (self.pairs, self.with_top) == (other.pairs, other.with_top)


class Slot:
    """A slot of the cache: the row it works on, or has completed."""

    def __init__(self):
        self.key = -1
        self.idle = True
        self.tokens: tuple[int, ...] = ()
        self.filled, self.rotated_as = 0, 0  # tokens in the cache
        self._row = Row((), ())
        self._order: list[int] = []  # of the row's pairs, by position
        self._chunks: list[_Scored] = []

    def drop(self) -> None:
        """Forgets the row; what the cache has of it can still be reused."""
        self.idle = True

    def reusable(self, row: Row, share: bool, config: ModelConfig) -> int:
        """Returns the number of tokens of a row, in full chunks, that need no computation."""
        if not share or not same_rotation(row.rotated_as, self.rotated_as, config):
            return 0
        # The last chunk is always computed.
        limit = (len(row.tokens) - 1) // CHUNK
        shared = min(_common(row.tokens, self.tokens[: self.filled]) // CHUNK, limit)
        wanted = _by_chunk(row, _ordered(row))
        same = (new.same(old) for new, old in zip(wanted[:shared], self._chunks, strict=False))
        return CHUNK * next((i for i, one in enumerate(same) if not one), shared)

    def start(self, key: int, row: Row, share: bool, config: ModelConfig) -> int:
        """Starts a row after the chunks that are in the cache; returns the tokens in these."""
        self.filled = self.reusable(row, share, config)
        kept = self._chunks[: self.filled // CHUNK]
        self.key, self.idle = key, False
        self._row, self.tokens, self.rotated_as = row, row.tokens, row.rotated_as
        self._order = _ordered(row)
        self._chunks = _by_chunk(row, self._order)
        for at, old in enumerate(kept):
            if self._chunks[at].pairs:
                self._chunks[at] = old
        return self.filled

    @property
    def complete(self) -> bool:
        return self.filled >= len(self.tokens)

    def chunk(self) -> tuple[int, ...]:
        return self.tokens[self.filled : self.filled + CHUNK]

    def in_chunk(self) -> list[tuple[int, int]]:
        """Returns the pairs (index in the chunk, id) to score in the next chunk, at most CHUNK."""
        now = self._chunks[self.filled // CHUNK]
        left = now.pairs[len(now.logprobs) :]
        return [(position - self.filled, target) for position, target in left[:CHUNK]]

    def kind(self) -> tuple[int, bool]:
        """Returns the program of the next chunk: an index in LEVELS, and whether it has `top`."""
        count = len(self.in_chunk())
        level = next(level for level, size in enumerate(LEVELS) if count <= size)
        return level, bool(level and self._row.top)

    def take(self, results: list[np.ndarray]) -> int:
        """Keeps the results of a chunk; returns the number of tokens that are done."""
        count, now = len(self.in_chunk()), self._chunks[self.filled // CHUNK]
        logprobs, likely, *top = (result[:count].tolist() for result in results)
        now.logprobs += logprobs
        now.likely += likely
        if now.with_top and count:
            now.top += [tuple(zip(*one, strict=True)) for one in zip(*top, strict=True)]
        if self.in_chunk():  # more pairs than one call can score: compute the chunk again
            return 0
        done = len(self.chunk())
        self.filled += done
        return done

    def scores(self) -> Scores:
        """Returns the scores in the order of the row's pairs."""

        def in_order(parts) -> tuple:
            flat = [one for part in parts for one in part]
            return tuple(flat[i] for i in np.argsort(self._order).tolist())

        chunks, top = self._chunks, self._row.top
        alternatives = in_order(chunk.top for chunk in chunks) if top else ()
        return Scores(
            in_order(chunk.logprobs for chunk in chunks),
            in_order(chunk.likely for chunk in chunks),
            tuple(one[:top] for one in alternatives),
        )


def _ordered(row: Row) -> list[int]:
    """Returns the order of a row's pairs by position."""
    return sorted(range(len(row.scored)), key=lambda i: row.scored[i][0])


def _by_chunk(row: Row, order: Sequence[int]) -> list[_Scored]:
    """Returns the scored pairs of each chunk of a row, without results."""
    pairs: list[list[tuple[int, int]]] = [[] for _ in range(-(-len(row.tokens) // CHUNK))]
    for i in order:
        pairs[row.scored[i][0] // CHUNK].append(row.scored[i])
    return [_Scored(one, row.top) for one in pairs]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns the length of the longest common prefix."""
    n = min(len(one), len(other))
    same = np.asarray(one[:n]) == np.asarray(other[:n])
    return n if same.all() else int(np.argmin(same))
