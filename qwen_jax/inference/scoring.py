"""Log-probabilities of given tokens, with shared prefixes computed once. Report: 2.6.

A row is split into chunks at fixed positions. What it has in common with the row before it in the
same slot is in the cache already. Rows are sorted, and each slot gets a contiguous part of them, so
questions with the same examples follow one another.

On a CPU a device computes one row at a time and each kind of chunk in a program of its own. The
result is then bit-identical for any order and number of rows, with or without shared prefixes.

R rows, T tokens of a chunk, G scored tokens, V vocabulary.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.batching.scheduler import same_rotation
from qwen_jax.inference.decoder import kv_cache
from qwen_jax.inference.decoder.cached_forward import score_cached
from qwen_jax.inference.decoder.weights import PrepackedParams, for_decoding
from qwen_jax.kernels.platform import target_of
from qwen_jax.parallel.sharding import replicated, use_layout
from qwen_jax.types import Array, KVCache, Params

CHUNK = 64
# Scored tokens of a chunk: none, those of a choice of letters, or all.
_LEVELS = (0, 4, CHUNK)


@dataclasses.dataclass(frozen=True)
class Row:
    """Tokens, and next tokens to score after some of them.

    Attributes:
      tokens: ids, at least one; the last scored token need not be among them.
      scored: pairs (position, id): the log-probability of `id` after tokens[: position + 1].
    """

    tokens: tuple[int, ...]
    scored: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Natural log-probabilities of a row's scored ids, and whether each was the most likely id."""

    logprobs: tuple[float, ...]  # float32
    most_likely: tuple[bool, ...]  # among equals, the lowest id


class Scorer:
    """Scores rows with a model.

    Args:
      params: weights on their devices, as in inference.engine.Engine.
      batch_size: rows per device that are computed at once; a CPU computes one.
      max_length: maximum tokens of a row; None: config.context_length.
      mesh: the devices that the weights are sharded over; rows are split over its batch axes.
      share_prefixes: whether to reuse the chunks that a row has in common with the one before.

    Raises:
      ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        mesh: Mesh | None = None,
        share_prefixes: bool = True,
    ):
        self.max_length = config.context_length if max_length is None else max_length
        if batch_size < 1 or self.max_length < 1:
            raise ConfigError(
                f"batch_size={batch_size} and max_length={self.max_length} must be positive.",
                "Scorer",
                "use 1 or more.",
            )
        self._config, self._mesh, self._share = config, mesh, share_prefixes
        self._exact = target_of(params.embed).platform == "cpu"
        shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self._slots = shards * (1 if self._exact else batch_size)
        self._params = for_decoding(params, config=config)
        with _on(mesh):
            self._cache = _init_cache(
                config,
                self._slots,
                -(-self.max_length // CHUNK) * CHUNK,
                isinstance(self._params, PrepackedParams),
            )

    def score(
        self, rows: Sequence[Row], *, progress: Callable[[int], object] = lambda tokens: None
    ) -> Iterator[tuple[int, Scores]]:
        """Yields (index of a row, its scores), as rows are completed.

        Args:
          progress: receives the number of tokens just computed or reused.

        Raises:
          DataError: a row is empty or too long, an id is outside the vocabulary, or a
            log-probability is not finite; names the row.
        """
        for index, row in enumerate(rows):
            self._check(index, row)
        order = sorted(range(len(rows)), key=lambda index: rows[index].tokens)
        slots = [_Slot(part) for part in _split(order, rows, self._slots)]

        def start(slot: _Slot) -> bool:
            if not slot.next_row(rows, self._share, self._config):
                return False
            progress(slot.filled)
            return True

        held = [slot for slot in slots if start(slot)]
        while held:
            level = held[0].level()
            # Elsewhere rows of different levels are computed together, at the largest one.
            now = [slot for slot in held if not self._exact or slot.level() == level]
            level = max(slot.level() for slot in now)
            logprobs, likely = self._run(slots, now, level)
            for slot in now:
                at = slots.index(slot)
                progress(slot.take(logprobs[at], likely[at]))
                if not slot.complete:
                    continue
                index, scores = slot.index, slot.scores()
                if not np.all(np.isfinite(scores.logprobs)):
                    raise DataError(
                        "a log-probability is not finite.", f"row {index}", "check the weights."
                    )
                yield index, scores
                if not start(slot):
                    held.remove(slot)

    def _check(self, index: int, row: Row) -> None:
        ids = [*row.tokens, *(target for _, target in row.scored)]
        if not row.tokens or len(row.tokens) > self.max_length:
            raise DataError(
                f"the row has {len(row.tokens)} tokens, not 1 to {self.max_length}.",
                f"row {index}",
                "cut it.",
            )
        if min(ids) < 0 or max(ids) >= self._config.vocab_size:
            raise DataError(
                f"an id is outside [0, {self._config.vocab_size}).",
                f"row {index}",
                "use the tokenizer of the model.",
            )
        if any(not 0 <= position < len(row.tokens) for position, _ in row.scored):
            raise DataError(
                "a scored position is outside of the row.", f"row {index}", "score existing ones."
            )

    def _run(self, slots: "list[_Slot]", now: "list[_Slot]", level: int):
        """Computes the next chunk of the slots in `now`; returns arrays [R, G]."""
        R, G = self._slots, _LEVELS[level]
        tokens, pairs = np.zeros((R, CHUNK), np.int32), np.zeros((2, R, G), np.int32)
        counts, starts, lengths = (np.zeros(R, np.int32) for _ in range(3))
        for at, slot in enumerate(slots):
            starts[at], lengths[at] = slot.filled, len(slot.tokens)
            if slot in now:
                chunk = slot.chunk()
                counts[at] = len(chunk)
                tokens[at, : len(chunk)] = chunk
                scored = slot.in_chunk()
                pairs[:, at, : len(scored)] = np.asarray(scored, np.int32).reshape(-1, 2).T
        *found, self._cache = _score(
            self._params,
            self._cache,
            tokens,
            counts,
            starts,
            lengths,
            *pairs,
            config=self._config,
            mesh=self._mesh,
        )
        return jax.device_get(found) if G else (np.zeros((R, 0)), np.zeros((R, 0), bool))


class _Slot:
    """The row that a slot of the cache works on, and the rows that follow it."""

    def __init__(self, queue: list[int]):
        self._queue = iter(queue)
        self.index, self.tokens, self.filled = -1, (), 0
        self._order: list[int] = []
        self._scored: list[tuple[int, int]] = []  # what is left, in order of position
        self._logprobs: list[float] = []
        self._likely: list[bool] = []

    def next_row(self, rows: Sequence[Row], share: bool, config: ModelConfig) -> bool:
        """Starts the next row after the chunks that are in the cache; returns whether there is one.

        Chunks with scored positions are computed again.
        """
        index = next(self._queue, None)
        if index is None:
            self.tokens, self.filled = (), 0
            return False
        row, shared = rows[index], 0
        if share and same_rotation(len(row.tokens), len(self.tokens), config):
            shared = _common(row.tokens, self.tokens)
        first = min((position for position, _ in row.scored), default=len(row.tokens) - 1)
        self.index, self.tokens = index, row.tokens
        self.filled = min(shared, first) // CHUNK * CHUNK
        self._order = sorted(range(len(row.scored)), key=lambda i: row.scored[i][0])
        self._scored = [row.scored[i] for i in self._order]
        self._logprobs, self._likely = [], []
        return True

    @property
    def complete(self) -> bool:
        return self.filled >= len(self.tokens)

    def chunk(self) -> tuple[int, ...]:
        return self.tokens[self.filled : self.filled + CHUNK]

    def in_chunk(self) -> list[tuple[int, int]]:
        """Returns the pairs (index in the chunk, id) to score in the next chunk, at most CHUNK."""
        end = self.filled + CHUNK
        return [(p - self.filled, target) for p, target in self._scored if p < end][:CHUNK]

    def level(self) -> int:
        count = len(self.in_chunk())
        return next(level for level, size in enumerate(_LEVELS) if count <= size)

    def take(self, logprobs: np.ndarray, likely: np.ndarray) -> int:
        """Keeps the scores of a chunk; returns the number of tokens that are done."""
        count = len(self.in_chunk())
        self._logprobs += logprobs[:count].tolist()
        self._likely += likely[:count].tolist()
        del self._scored[:count]
        if self.in_chunk():  # more pairs than one call can score: compute the chunk again
            return 0
        done = len(self.chunk())
        self.filled += done
        return done

    def scores(self) -> Scores:
        place = np.argsort(self._order).tolist()
        return Scores(
            tuple(self._logprobs[i] for i in place), tuple(self._likely[i] for i in place)
        )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns the length of the longest common prefix."""
    n = min(len(one), len(other))
    same = np.asarray(one[:n]) == np.asarray(other[:n])
    return n if same.all() else int(np.argmin(same))


def _split(order: list[int], rows: Sequence[Row], parts: int) -> list[list[int]]:
    """Splits sorted rows into contiguous parts with about equal numbers of tokens."""
    ends = np.cumsum([len(rows[index].tokens) for index in order])
    total = int(ends[-1]) if len(ends) else 0
    edges = [int(np.searchsorted(ends, total * part / parts)) for part in range(parts)]
    edges = [0, *edges[1:], len(order)]
    return [order[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]


def _on(mesh: Mesh | None):
    return contextlib.nullcontext() if mesh is None else use_layout(mesh)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _init_cache(config: ModelConfig, slots: int, length: int, layer_by_layer: bool) -> KVCache:
    return kv_cache.init_cache(config, slots, length, layer_by_layer=layer_by_layer)


@functools.partial(jax.jit, static_argnames=("config", "mesh"), donate_argnums=1)
def _score(
    params,
    cache: KVCache,
    tokens_RT: Array,
    counts_R: Array,
    starts_R: Array,
    lengths_R: Array,
    positions_RG: Array,
    targets_RG: Array,
    *,
    config: ModelConfig,
    mesh: Mesh | None,
) -> tuple[Array, Array, KVCache]:
    """Runs score_cached on the next chunk of each row, whose full length is in lengths_R."""
    cache = cache.replace(
        lengths=jnp.asarray(starts_R, jnp.int32), ntk_lengths=jnp.asarray(lengths_R, jnp.int32)
    )
    with _on(mesh):
        logprobs_RG, likely_RG, cache = score_cached(
            params,
            tokens_RT,
            cache,
            positions_RG,
            targets_RG,
            config=config,
            num_tokens=counts_R,
            prompt_lengths=lengths_R,
        )
        return *replicated((logprobs_RG, likely_RG)), cache
