"""The generation engine: requests come and go while others run (a continuous batch).

A fixed number of rows over one KV cache. A step admits what fits, prefills a part of the prompts
that wait and advances the rows that decode by a few tokens. Shapes never change, so that after the
first of each kind nothing is compiled.

A request's answer does not depend on the rows beside it, on when it came or on what its row held
before: rows never mix, prompts are cut into chunks at fixed places, and keys that an earlier prompt
left are used again only in whole chunks.
"""

from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.inference.batching import batch as device
from qwen_jax.inference.batching.limits import (
    check_memory,
    check_request,
    check_settings,
    real_vocab_size,
)
from qwen_jax.inference.batching.scheduler import Chunk, Job, Scheduler
from qwen_jax.inference.decoder.kv_cache import BLOCK, cache_bytes
from qwen_jax.inference.decoder.weights import PrepackedParams, for_decoding
from qwen_jax.inference.request import Completion, Event, Request
from qwen_jax.inference.sampling import (
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
    sampling_arrays,
    write_row,
)
from qwen_jax.inference.stream import TextStream, token_bytes
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params


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
      memory_gib: what the cache may take of each device; None: what the device has left.
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
        memory_gib: float | None = None,
        vocab_size: int | None = None,
    ):
        slots = config.context_length if slots is None else slots
        check_settings(
            rows=rows,
            slots=slots,
            decode_steps=decode_steps,
            prefill_chunk=prefill_chunk,
            cache_dtype=cache_dtype,
        )
        self._vocab_size = real_vocab_size(vocab_size, tokenizer, config)
        self.slots = -(-slots // BLOCK) * BLOCK
        self.config, self.mesh, self.tokenizer = config, mesh, tokenizer
        self._cache_dtype, self._decode_steps = cache_dtype, decode_steps
        check_memory(
            config,
            rows=rows,
            slots=self.slots,
            cache_dtype=cache_dtype,
            mesh=mesh,
            memory_gib=memory_gib,
        )
        self._params = for_decoding(params, config=config)
        self._rows = device.make_rows(
            config=config,
            mesh=mesh,
            rows=rows,
            slots=self.slots,
            cache_dtype=cache_dtype,
            layer_by_layer=isinstance(self._params, PrepackedParams),
        )
        self._schedule = Scheduler(config, rows=rows, chunk=prefill_chunk)
        self._sampling = sampling_arrays(
            [SamplingParams(max_new_tokens=1)] * rows,
            vocab_size=self._vocab_size,
            num_stop_ids=MAX_STOP_TOKEN_IDS,
        )
        self._table = None if tokenizer is None else token_bytes(tokenizer)
        self._events: list[Event] = []  # of what ended between two steps
        self._next_id = 0

    def memory(self) -> int:
        """Bytes of the KV cache, over all devices."""
        rows = len(self._schedule.jobs)
        return cache_bytes(self.config, rows, self.slots, dtype=self._cache_dtype)

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._events) or self._schedule.busy

    @property
    def free_rows(self) -> int:
        """Rows that no request holds."""
        return sum(job is None for job in self._schedule.jobs)

    def submit(self, request: Request) -> list[int]:
        """Puts a request in the queue; each of its n answers has a request id of its own.

        They share what is computed for the prompt. Answer i draws with stream i of the seed.

        Raises:
          ConfigError, DataError: what cannot be done by this engine, with the numbers.
        """
        check_request(
            request,
            self.config,
            vocab_size=self._vocab_size,
            slots=self.slots,
            tokenizer=self.tokenizer,
        )
        jobs = [
            Job(self._next_id + i, request, i, self._text_stream(request))
            for i in range(request.sampling.n)
        ]
        self._next_id += len(jobs)
        self._schedule.queue.extend(jobs)
        return [job.id for job in jobs]

    def cancel(self, request_id: int) -> None:
        """Ends a request, wherever it is; its last event says so. One that has ended stays so."""
        job = self._schedule.remove(request_id)
        if job is not None:
            self._events.append(_end(job, "cancelled"))

    def step(self) -> list[Event]:
        """Admits what fits, prefills up to a chunk, decodes up to decode_steps tokens a row."""
        self._admit()
        first = self._prefill()
        begun, new = self._schedule.begun, None
        if begun.any():
            self._rows, new, active = device.advance(
                self._params,
                self._rows,
                begun,
                self._sampling,
                np.int32(self._decode_steps),
                np.bool_(bool(self._schedule.queue)),
                config=self.config,
                mesh=self.mesh,
                room=self._decode_steps,
            )
        events, self._events = self._events, []
        if new is None:
            return events
        # One wait for the devices, for all of the step.
        first, new, active = jax.device_get((first, new, active))
        for row in np.flatnonzero(begun).tolist():
            tokens, logprobs = new.tokens[row], new.logprobs[row]
            if row in first:
                tokens = np.concatenate([first[row][0][None], tokens])
                logprobs = np.concatenate([first[row][1][None], logprobs])
            count = int(np.argmax(np.append(tokens, -1) < 0))
            events += self._new_tokens(row, tokens[:count], logprobs[:count], bool(active[row]))
        return events

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """Answers all requests, in order; the n answers of one follow one another."""
        ids = [i for request in requests for i in self.submit(request)]
        parts = {i: ([], [], []) for i in ids}
        finish: dict[int, str] = {}
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
        for job, chosen in self._schedule.admit():
            if chosen.source is not None and chosen.source != chosen.row:
                self._rows = device.copy_row(
                    self._rows,
                    np.int32(chosen.source),
                    np.int32(chosen.row),
                    np.int32(chosen.shared),
                )
            write_row(self._sampling, chosen.row, job.request.sampling, stream=job.stream)

    def _prefill(self) -> dict[int, tuple]:
        """Row -> first token and its log-probability, still on the devices, of rows that begin."""
        first = {}
        for work in self._schedule.prefill():
            if isinstance(work, Chunk):
                self._rows = device.prefill(
                    self._params, self._rows, *work, config=self.config, mesh=self.mesh
                )
            else:
                first[work] = self._begin(work)
        return first

    def _begin(self, row: int) -> tuple:
        tokens = self._schedule.job(row).request.prompt
        prompt = np.full(self.slots, self.config.vocab_size, np.int32)
        prompt[: len(tokens)] = tokens
        own = jax.tree.map(lambda x: x[row : row + 1] if np.ndim(x) else x, self._sampling)
        self._rows, token, logprob = device.begin(
            self._rows, np.int32(row), prompt, np.int32(len(tokens)), own
        )
        return token, logprob

    def _new_tokens(self, row: int, tokens, logprobs, active: bool) -> list[Event]:
        job, events = self._schedule.job(row), []
        sampling = job.request.sampling
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            job.count += 1
            text = "" if job.text is None else job.text.add(token)
            events.append(Event(job.id, token, text, logprob if sampling.logprobs else None))
            if job.text is not None and job.text.stopped:
                active = False
                break
        if not active:
            stopped = job.text is not None and job.text.stopped
            limit = job.count == sampling.max_new_tokens
            events.append(_end(job, "length" if limit and not stopped else "stop"))
            self._schedule.release(row)
        return events

    def _text_stream(self, request: Request) -> TextStream | None:
        return None if self._table is None else TextStream(self._table, request.sampling.stop)


def _end(job: Job, finish: str) -> Event:
    return Event(job.id, None, "" if job.text is None else job.text.finish(), None, finish)
