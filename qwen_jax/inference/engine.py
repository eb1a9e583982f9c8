"""The generation engine: requests come and go while others run (a continuous batch).

A fixed number of rows over one KV cache. A step admits what fits, prefills a part of the prompts
that wait and advances the rows that decode by a few tokens. Shapes never change, so that after the
first of each kind nothing is compiled.

A request's answer does not depend on the rows beside it, on when it came or on what its row held
before: rows never mix, prompts are cut into chunks at fixed places, and keys that an earlier prompt
left are used again only in whole chunks.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference import batch as device
from qwen_jax.inference.cpu_weights import TurnedParams
from qwen_jax.inference.kv_cache import BLOCK, cache_bytes
from qwen_jax.inference.prefix import Held, Plan, plan
from qwen_jax.inference.request import Completion, Event, Request
from qwen_jax.inference.sampling import (
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
    check_stop_token_ids,
    sampling_arrays,
    write_row,
)
from qwen_jax.inference.stream import TextStream, token_bytes
from qwen_jax.inference.token_ids import is_integer, read_ids
from qwen_jax.inference.weights import for_decoding
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params

CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")
_SMALLEST_CHUNK = 16
_SHORT = 128  # tokens of short prompts that are computed together


@dataclasses.dataclass
class _Job:
    """A request on its way."""

    id: int
    request: Request
    stream: int  # which of the samples of one request
    text: TextStream | None
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """Continues prompts, many at a time, as tokens come.

    Args:
      params: weights; they stay on the devices they are on. A copy in config.compute_dtype is made
        where they have another (weights.for_decoding).
      tokenizer: for texts and stop strings; without one events carry no text.
      rows: how many requests decode at the same time.
      slots: tokens of prompt and answer that a row has room for; None: config.context_length.
      cache_dtype: of the KV cache, one of float32, bfloat16, float16, int8; None: compute_dtype.
      prefill_chunk: tokens of a prompt computed at a time, between the steps of other rows; a power
        of two.
      decode_steps: tokens per row computed before the host looks at them.
      mesh: the devices that the weights are spread over; the cache is spread alike, rows over the
        batch axes and key-value heads over the tensor axis.
      memory_gb: what the cache may take of each device; None: what the device says it has left.
      vocab_size: ids from here on are never produced; None: the tokenizer's, or all.

    Raises:
      ConfigError: a setting out of its range; a cache that does not fit, with the numbers.

    Example:
      >>> engine = Engine(params, config, tokenizer=tokenizer)  # doctest: +SKIP
      >>> request = Request(tokenizer.encode("Once"), SamplingParams(max_new_tokens=50))
      >>> engine.submit(request)  # doctest: +SKIP
      >>> while engine.busy:  # doctest: +SKIP
      ...     print("".join(event.text for event in engine.step()), end="")
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        *,
        tokenizer: Tokenizer | None = None,
        rows: int = 8,
        slots: int | None = None,
        cache_dtype: str | None = None,
        prefill_chunk: int = 512,
        decode_steps: int = 8,
        mesh: Mesh | None = None,
        memory_gb: float | None = None,
        vocab_size: int | None = None,
    ):
        slots = config.context_length if slots is None else slots
        for name, value in (
            ("rows", rows),
            ("slots", slots),
            ("decode_steps", decode_steps),
            ("prefill_chunk", prefill_chunk),
        ):
            if not (is_integer(value) and value >= 1):
                raise ConfigError(
                    f"{name}={value!r} is not a positive whole number.",
                    f"Engine({name})",
                    "use 1 or more.",
                )
        if prefill_chunk < _SMALLEST_CHUNK or prefill_chunk & (prefill_chunk - 1):
            raise ConfigError(
                f"prefill_chunk={prefill_chunk} is not a power of two from {_SMALLEST_CHUNK} on.",
                "Engine(prefill_chunk)",
                "use 512.",
            )
        if cache_dtype is not None and cache_dtype not in CACHE_DTYPES:
            raise ConfigError(
                f"cache_dtype={cache_dtype!r} is unknown.",
                "Engine(cache_dtype)",
                f"use one of {', '.join(CACHE_DTYPES)}, or None.",
            )
        vocab_size = _vocab_size(vocab_size, tokenizer, config)
        self.slots = -(-slots // BLOCK) * BLOCK
        self.config, self.mesh, self.tokenizer = config, mesh, tokenizer
        self._cache_dtype, self._chunk = cache_dtype, prefill_chunk
        self._decode_steps = decode_steps
        self._held = [Held() for _ in range(rows)]
        self._check_memory(memory_gb)

        self._params = for_decoding(params, config=config)
        self._rows = device.make_rows(
            config=config,
            mesh=mesh,
            rows=rows,
            slots=self.slots,
            cache_dtype=cache_dtype,
            layer_by_layer=isinstance(self._params, TurnedParams),
        )
        self._vocab_size = vocab_size
        self._table = None if tokenizer is None else token_bytes(tokenizer)
        self._jobs: list[_Job | None] = [None] * rows
        self._begun = np.zeros(rows, bool)  # rows whose answer has begun
        self._sampling = sampling_arrays(
            [SamplingParams(max_new_tokens=1)] * rows,
            vocab_size=vocab_size,
            num_stop_ids=MAX_STOP_TOKEN_IDS,
        )
        self._queue: collections.deque[_Job] = collections.deque()
        self._events: list[Event] = []  # of what ended between two steps
        self._next_id, self._clock = 0, 0

    def memory(self) -> int:
        """Bytes of the KV cache, over all devices."""
        return cache_bytes(self.config, len(self._held), self.slots, dtype=self._cache_dtype)

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._queue or self._events or any(job is not None for job in self._jobs))

    @property
    def free_rows(self) -> int:
        """Rows that no request holds."""
        return sum(job is None for job in self._jobs)

    @property
    def decoding(self) -> int:
        """Rows whose answer has begun."""
        return int(self._begun.sum())

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._queue)

    def submit(self, request: Request) -> list[int]:
        """Puts a request in the queue; each of its n answers has a request id of its own.

        They share what is computed for the prompt. Answer i draws with stream i of the seed.

        Raises:
          ConfigError, DataError: what cannot be done by this engine, with the numbers.
        """
        self._check_request(request)
        jobs = [
            _Job(self._next_id + i, request, i, self._text_stream(request))
            for i in range(request.sampling.n)
        ]
        self._next_id += len(jobs)
        self._queue.extend(jobs)
        return [job.id for job in jobs]

    def cancel(self, request_id: int) -> None:
        """Ends a request, wherever it is; its last event says so. One that has ended stays so."""
        for job in self._queue:
            if job.id == request_id:
                self._queue.remove(job)
                self._events.append(_end(job, "cancelled"))
                return
        for row, job in enumerate(self._jobs):
            if job is not None and job.id == request_id:
                self._events.append(_end(job, "cancelled"))
                self._release(row)
                return

    def step(self) -> list[Event]:
        """Admits what fits, prefills up to a chunk, decodes up to decode_steps tokens a row."""
        self._admit()
        first = self._prefill()
        new = None
        if self._begun.any():
            self._rows, new, active = device.advance(
                self._params,
                self._rows,
                self._begun,
                self._sampling,
                np.int32(self._decode_steps),
                np.bool_(bool(self._queue)),
                config=self.config,
                mesh=self.mesh,
                room=self._decode_steps,
            )
        events, self._events = self._events, []
        if new is None:
            return events
        # One wait for the devices, for all of the step.
        first, new, active = jax.device_get((first, new, active))
        for row in np.flatnonzero(self._begun):
            tokens, logprobs = new.tokens[row], new.logprobs[row]
            if row in first:
                tokens = np.concatenate([first[row][0][None], tokens])
                logprobs = np.concatenate([first[row][1][None], logprobs])
            count = int(np.argmax(np.append(tokens, -1) < 0))
            events += self._new_tokens(row, tokens[:count], logprobs[:count], bool(active[row]))
        return events

    def run(self, requests: Iterable[Request], *, progress: bool = False) -> list[Completion]:
        """Answers all requests, in order; the n answers of one follow one another.

        Args:
          progress: show a bar with the time left.
        """
        ids = [i for request in requests for i in self.submit(request)]
        parts = {i: ([], [], []) for i in ids}
        finish: dict[int, str] = {}
        with _bar(len(ids)) if progress else contextlib.nullcontext() as bar:
            while len(finish) < len(ids):
                for event in self.step():
                    if event.request_id not in parts:
                        continue
                    tokens, texts, logprobs = parts[event.request_id]
                    texts.append(event.text)
                    if event.token is not None:
                        tokens.append(event.token)
                        logprobs.append(event.logprob)
                    if event.finish is not None:
                        finish[event.request_id] = event.finish
                        if bar is not None:
                            bar.update()
        return [
            Completion(
                tuple(tokens),
                "".join(texts),
                None if None in logprobs else tuple(logprobs),
                finish[i],
            )
            for i, (tokens, texts, logprobs) in parts.items()
        ]

    def _admit(self) -> None:
        while self._queue:
            job = self._queue[0]
            free = [row for row, held in enumerate(self._jobs) if held is None]
            chosen: Plan | None = plan(
                job.request.prompt, self._held, free, chunk=self._chunk, same_codes=self._same_codes
            )
            if chosen is None:
                return
            self._queue.popleft()
            self._clock += 1
            if chosen.source is not None and chosen.source != chosen.row:
                self._rows = device.copy_row(
                    self._rows,
                    np.int32(chosen.source),
                    np.int32(chosen.row),
                    np.int32(chosen.shared),
                )
            self._jobs[chosen.row] = job
            self._held[chosen.row] = Held(job.request.prompt, chosen.shared, self._clock)
            write_row(self._sampling, chosen.row, job.request.sampling, stream=job.stream)

    def _prefill(self) -> dict[int, tuple]:
        """Computes parts of prompts, oldest first, and begins the rows that are complete.

        A chunk's tokens at a time while other rows decode, who wait for it; four where nobody does.
        Returns row -> first token and its log-probability, still on the devices.
        """
        budget, first = self._chunk * (1 if self._begun.any() else 4), {}
        waiting = [
            row for row, job in enumerate(self._jobs) if job is not None and not self._begun[row]
        ]
        waiting.sort(key=lambda row: self._held[row].clock)
        while True:
            for row in [row for row in waiting if not self._next_size(row)]:
                first[row] = self._begin(row)
                waiting.remove(row)
            if not waiting or budget <= 0:
                return first
            size = self._next_size(waiting[0])
            alike = [row for row in waiting if self._next_size(row) == size]
            budget -= self._prefill_chunks(alike[: self._at_once(size)], size)

    def _next_size(self, row: int) -> int:
        """The padded length of a row's next chunk; 0 where its prompt is complete."""
        left = min(len(self._held[row].prompt) - self._held[row].filled, self._chunk)
        return left and max(_SMALLEST_CHUNK, 1 << (left - 1).bit_length())

    def _at_once(self, size: int) -> int:
        """Chunks of a size computed together, always so many: rounding must not tell of others."""
        return max(1, min(len(self._jobs), _SHORT // size))

    def _prefill_chunks(self, rows: list[int], size: int) -> int:
        """Returns the tokens that were computed, padding included."""
        P = self._at_once(size)
        tokens = np.zeros((P, size), np.int32)
        numbers = np.zeros((4, P), np.int32)  # real tokens, rows, starts, lengths of prompts
        numbers[1] = len(self._jobs) + np.arange(P)  # nobody's, if nobody comes
        for i, row in enumerate(rows):
            held = self._held[row]
            part = held.prompt[held.filled : held.filled + size]
            tokens[i, : len(part)] = part
            numbers[:, i] = len(part), row, held.filled, len(held.prompt)
            held.filled += len(part)
        self._rows = device.prefill(
            self._params, self._rows, tokens, *numbers, config=self.config, mesh=self.mesh
        )
        return P * size

    def _begin(self, row: int) -> tuple:
        held = self._held[row]
        prompt = np.full(self.slots, self.config.vocab_size, np.int32)
        prompt[: len(held.prompt)] = held.prompt
        own = jax.tree.map(lambda x: x[row : row + 1] if np.ndim(x) else x, self._sampling)
        self._rows, token, logprob = device.begin(
            self._rows, np.int32(row), prompt, np.int32(len(held.prompt)), own
        )
        self._begun[row] = True
        return token, logprob

    def _new_tokens(self, row: int, tokens, logprobs, active: bool) -> list[Event]:
        job, events = self._jobs[row], []
        sampling = job.request.sampling
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            job.tokens.append(token)
            text = "" if job.text is None else job.text.add(token)
            events.append(Event(job.id, token, text, logprob if sampling.logprobs else None))
            if job.text is not None and job.text.stopped:
                active = False
                break
        if not active:
            stopped = job.text is not None and job.text.stopped
            limit = len(job.tokens) == sampling.max_new_tokens
            events.append(_end(job, "length" if limit and not stopped else "stop"))
            self._release(row)
        return events

    def _release(self, row: int) -> None:
        self._jobs[row], self._begun[row] = None, False

    def _text_stream(self, request: Request) -> TextStream | None:
        return None if self._table is None else TextStream(self._table, request.sampling.stop)

    def _same_codes(self, one: int, other: int) -> bool:
        """Whether prompts of these lengths are rotated alike (dynamic NTK, report 2.5)."""
        return _codes(one, self.config) == _codes(other, self.config)

    def _check_request(self, request: Request) -> None:
        read_ids(request.prompt, self._vocab_size, "Request(prompt)", DataError)
        check_stop_token_ids(request.sampling, self.config.vocab_size)
        if request.sampling.stop and self.tokenizer is None:
            raise ConfigError(
                "stop needs texts, and the engine has no tokenizer.",
                "stop",
                "make the engine with tokenizer=.",
            )
        length, new = len(request.prompt), request.sampling.max_new_tokens
        if length + new > self.slots:
            raise DataError(
                f"{length} prompt tokens and {new} new ones do not fit a row of "
                f"{self.slots} slots.",
                "prompt, max_new_tokens",
                f"ask for at most {max(self.slots - length, 0)} new tokens, shorten "
                "the prompt, or make the engine with more slots.",
            )

    def _check_memory(self, memory_gb: float | None) -> None:
        """Refuses a cache that is larger than what a device may spend on it."""
        devices = [jax.devices()[0]] if self.mesh is None else list(self.mesh.devices.flat)
        limit = None if memory_gb is None else memory_gb * 1e9
        if limit is None:
            stats = devices[0].memory_stats() or {}
            if "bytes_limit" in stats:
                limit = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        rows = len(self._held)
        needed = self.memory() / _shards(self.config, rows, self.mesh)
        if limit is not None and needed > limit:
            fit = int(rows * limit / needed)
            raise ConfigError(
                f"the KV cache of {rows} rows of {self.slots} slots takes {needed / 1e9:.3f} GB of "
                f"each device; there are {limit / 1e9:.3f} GB.",
                "Engine(rows, slots)",
                f'{fit} rows of this length would fit; or use fewer slots, or cache_dtype="int8".',
            )


def _end(job: _Job, finish: str) -> Event:
    return Event(job.id, None, "" if job.text is None else job.text.finish(), None, finish)


def _vocab_size(vocab_size, tokenizer, config: ModelConfig) -> int:
    if vocab_size is None:
        vocab_size = config.vocab_size if tokenizer is None else tokenizer.vocab_size
    if not (is_integer(vocab_size) and 1 <= vocab_size <= config.vocab_size):
        raise ConfigError(
            f"vocab_size={vocab_size!r} is outside [1, {config.vocab_size}].",
            "Engine(vocab_size)",
            "use the model's own tokenizer.",
        )
    return vocab_size


@functools.lru_cache(maxsize=4096)
def _codes(length: int, config: ModelConfig) -> tuple[int, ...]:
    """How often the training length doubles within what each layer sees of a prompt."""
    if not config.extension.dynamic_ntk:
        return ()
    seen = [min(length, window) for window in config.extension.windows or (length,)]
    return tuple((-(-n // config.context_length) - 1).bit_length() for n in seen)


def _shards(config: ModelConfig, rows: int, mesh: Mesh | None) -> int:
    """How many pieces the cache is cut into."""
    if mesh is None:
        return 1
    over_rows = mesh.shape["data"] * mesh.shape["fsdp"]
    over_heads = mesh.shape["tensor"]
    return (over_rows if rows % over_rows == 0 else 1) * (
        over_heads if config.kv_heads % over_heads == 0 else 1
    )


def _bar(total: int):
    from tqdm import tqdm

    return tqdm(total=total, unit=" answers", smoothing=0.1)
