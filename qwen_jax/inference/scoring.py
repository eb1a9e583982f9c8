"""Log-probabilities of given tokens, with shared prefixes computed once. Report: 2.6.

A row is split into chunks at fixed positions. What it has in common with the row before it in the
same slot is in the cache already. Rows are sorted, and each slot gets a contiguous part of them, so
questions with the same examples follow one another.

On a CPU a device computes one row at a time and each kind of chunk in a program of its own. The
result is then bit-identical for any order and number of rows, with or without shared prefixes.

Slots keep their keys, values and scores between calls. A row that begins as the last one of its
slot did, such as the next choice of a question, is computed only where it differs.

R rows, T tokens of a chunk, G scored tokens, A alternatives, V vocabulary.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.batching.score_slots import CHUNK, LEVELS, MAX_TOP, Row, Scores, Slot
from qwen_jax.inference.decoder import kv_cache
from qwen_jax.inference.decoder.cached_forward import score_cached
from qwen_jax.inference.decoder.weights import PrepackedParams, for_decoding
from qwen_jax.kernels.platform import target_of
from qwen_jax.parallel.sharding import replicated, use_layout
from qwen_jax.types import Array, KVCache, Params


class Scorer:
    """Scores rows with a model.

    Rows are scored all at once (`score`), or as they arrive (`put` and `step`), by one thread.

    Args:
      params: weights on their devices, as in inference.engine.Engine, or as it keeps them.
      batch_size: rows per device that are computed at once; a CPU computes one.
      max_length: maximum tokens of a row; None: config.context_length.
      mesh: the devices that the weights are sharded over; rows are split over its batch axes.
      share_prefixes: whether to reuse the chunks that a row has in common with the one before.
      vocab_size: ids at or above it are never alternatives; None: config.vocab_size.

    Raises:
      ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        params: Params | PrepackedParams,
        config: ModelConfig,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        mesh: Mesh | None = None,
        share_prefixes: bool = True,
        vocab_size: int | None = None,
    ):
        self.max_length = config.context_length if max_length is None else max_length
        if batch_size < 1 or self.max_length < 1:
            raise ConfigError(
                f"batch_size={batch_size} and max_length={self.max_length} must be positive.",
                "Scorer",
                "use 1 or more.",
            )
        self._config, self._mesh, self._share = config, mesh, share_prefixes
        self._vocab_size = np.int32(vocab_size or config.vocab_size)
        self._exact = target_of(params.embed).platform == "cpu"
        shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self._slots = [Slot() for _ in range(shards * (1 if self._exact else batch_size))]
        if not isinstance(params, PrepackedParams):
            params = for_decoding(params, config=config)
        self._params = params
        with _on(mesh):
            self._cache = _init_cache(
                config,
                len(self._slots),
                -(-self.max_length // CHUNK) * CHUNK,
                isinstance(self._params, PrepackedParams),
            )

    @property
    def free_slots(self) -> int:
        """The number of slots without a row."""
        return sum(slot.idle for slot in self._slots)

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
            self.check(row, f"row {index}")
        order = sorted(range(len(rows)), key=lambda index: rows[index].tokens)
        queues = [collections.deque(part) for part in _split(order, rows, len(self._slots))]
        for slot in self._slots:
            slot.drop()  # rows of a call that was abandoned
        while True:
            for slot, queue in zip(self._slots, queues, strict=True):
                if slot.idle and queue:
                    index = queue.popleft()
                    progress(slot.start(index, rows[index], self._share, self._config))
            if all(slot.idle for slot in self._slots):
                return
            for index, scores in self._step(progress):
                if not np.all(np.isfinite(scores.logprobs)):
                    raise DataError(
                        "a log-probability is not finite.", f"row {index}", "check the weights."
                    )
                yield index, scores

    def put(self, key: int, row: Row) -> None:
        """Starts a row in the free slot that has most of it in its cache.

        Args:
          key: what `step` returns with the row's scores.

        Raises:
          DataError: the row is empty or too long, or an id is outside the vocabulary.
        """
        self.check(row, str(key))
        free = [slot for slot in self._slots if slot.idle]
        assert free, "no slot is free"
        best = max(free, key=lambda slot: slot.reusable(row, self._share, self._config))
        best.start(key, row, self._share, self._config)

    def step(self) -> list[tuple[int, Scores]]:
        """Computes the next chunk of the rows that have begun; returns those that are complete.

        Scores are not checked: they may be infinite or NaN.
        """
        return self._step(lambda tokens: None)

    def drop(self, key: int) -> None:
        """Forgets a row that has begun; its slot is free."""
        for slot in self._slots:
            if not slot.idle and slot.key == key:
                slot.drop()

    def check(self, row: Row, where: str) -> None:
        """Raises DataError, naming `where`, if a row cannot be scored."""
        ids = [*row.tokens, *(target for _, target in row.scored)]
        if not row.tokens or len(row.tokens) > self.max_length:
            raise DataError(
                f"the row has {len(row.tokens)} tokens, not 1 to {self.max_length}.",
                where,
                "cut it.",
            )
        if min(ids) < 0 or max(ids) >= self._config.vocab_size:
            raise DataError(
                f"an id is outside [0, {self._config.vocab_size}).",
                where,
                "use the tokenizer of the model.",
            )
        if any(not 0 <= position < len(row.tokens) for position, _ in row.scored):
            raise DataError(
                "a scored position is outside of the row.", where, "score existing ones."
            )
        if not 0 <= row.top <= min(MAX_TOP, int(self._vocab_size)):
            raise DataError(f"top={row.top} is out of range.", where, f"use 0 to {MAX_TOP}.")

    def _step(self, progress: Callable[[int], object]) -> list[tuple[int, Scores]]:
        held = [slot for slot in self._slots if not slot.idle]
        if not held:
            return []
        # Elsewhere rows of different kinds are computed together, in the largest program.
        kind = held[0].kind()
        now = [slot for slot in held if not self._exact or slot.kind() == kind]
        kinds = [slot.kind() for slot in now]
        results = self._run(now, max(level for level, _ in kinds), any(top for _, top in kinds))
        finished = []
        for slot in now:
            at = self._slots.index(slot)
            progress(slot.take([result[at] for result in results]))
            if slot.complete:
                finished.append((slot.key, slot.scores()))
                slot.idle = True
        return finished

    def _run(self, now: "list[Slot]", level: int, top: bool) -> list[np.ndarray]:
        """Computes the next chunk of the slots in `now`.

        Returns:
          Log-probabilities and whether each is the largest, [R, G]; with `top`, also ids and
          log-probabilities of alternatives, [R, G, A].
        """
        R, G = len(self._slots), LEVELS[level]
        tokens, pairs = np.zeros((R, CHUNK), np.int32), np.zeros((2, R, G), np.int32)
        counts, starts, lengths = (np.zeros(R, np.int32) for _ in range(3))
        for at, slot in enumerate(self._slots):
            starts[at], lengths[at] = slot.filled, slot.rotated_as
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
            self._vocab_size,
            config=self._config,
            mesh=self._mesh,
            num_top=min(MAX_TOP, int(self._vocab_size)) if top else 0,
        )
        return jax.device_get(found) if G else [np.zeros((R, 0)), np.zeros((R, 0), bool)]


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


@functools.partial(jax.jit, static_argnames=("config", "mesh", "num_top"), donate_argnums=1)
def _score(
    params,
    cache: KVCache,
    tokens_RT: Array,
    counts_R: Array,
    starts_R: Array,
    lengths_R: Array,
    positions_RG: Array,
    targets_RG: Array,
    vocab_size: Array,
    *,
    config: ModelConfig,
    mesh: Mesh | None,
    num_top: int,
) -> tuple[Any, ...]:
    """Runs score_cached on the next chunk of each row, whose rotation is that of lengths_R."""
    cache = cache.replace(
        lengths=jnp.asarray(starts_R, jnp.int32), ntk_lengths=jnp.asarray(lengths_R, jnp.int32)
    )
    with _on(mesh):
        *found, cache = score_cached(
            params,
            tokens_RT,
            cache,
            positions_RG,
            targets_RG,
            config=config,
            num_tokens=counts_R,
            prompt_lengths=lengths_R,
            num_top=num_top,
            vocab_size=vocab_size,
        )
        return *replicated(tuple(found)), cache
