"""The generation engine: continuous batching of requests that arrive and finish at any time.

The engine has a fixed number of decode slots over one KV cache. A step admits waiting requests,
prefills part of their prompts and decodes a few tokens in every running slot. Shapes never change,
so nothing is compiled after the first step of each kind.

A completion does not depend on other slots, on when its request arrives or on what its slot ran
before. Slots are computed independently, prompts are split into chunks at fixed positions, and
cached keys of an earlier prompt are reused only in full chunks.
"""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.inference.batching import batch as device
from qwen_jax.inference.batching.fair_queue import ANYONE, Owner
from qwen_jax.inference.batching.limits import (
    check_memory,
    check_request,
    check_settings,
    real_vocab_size,
)
from qwen_jax.inference.batching.scheduler import Choice, Chunk, Scheduler
from qwen_jax.inference.constraints.masks import Masks
from qwen_jax.inference.decoder.kv_cache import BLOCK, cache_bytes
from qwen_jax.inference.decoder.weights import PrepackedParams, for_decoding
from qwen_jax.inference.request import Completion, Event, Request
from qwen_jax.inference.sampling import idle_slots, write_slot
from qwen_jax.inference.scoring import Scorer
from qwen_jax.inference.stream import TextStream, token_bytes
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params


class Engine:
    """Continues many prompts at a time and returns tokens as they are sampled.

    Args:
      params: weights, which stay on their devices. Weights whose dtype is not
        config.compute_dtype are copied (weights.for_decoding).
      tokenizer: converts ids to text and finds stop strings; without one, events have no text.
      max_num_seqs: number of decode slots, that is, of sequences that run concurrently.
      max_model_len: maximum tokens of prompt and completion per slot, rounded up to a multiple of
        64; None: config.context_length.
      cache_dtype: dtype of the KV cache: float32, bfloat16, float16 or int8; None: compute_dtype.
      prefill_chunk: prompt tokens computed at a time, between the decoding steps of other slots; a
        power of two.
      decode_steps: tokens decoded per slot before the host reads them.
      mesh: the devices that the weights are sharded over. The cache is sharded over the same
        devices, slots over the batch axes and key-value heads over the tensor axis.
      memory_gib: memory limit of the cache per device, in GiB; None: the device's free memory.
      vocab_size: ids at or above this value are never sampled; None: the tokenizer's vocab_size,
        or the model's without a tokenizer.

    Attributes:
      on_new_size: called with the padded length of a prompt chunk before the first one of that
        length, for which a program is compiled.

    Raises:
      ConfigError: a setting is out of range, or the cache does not fit; the error gives the sizes.

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
        max_num_seqs: int = 8,
        max_model_len: int | None = None,
        cache_dtype: str | None = None,
        prefill_chunk: int = 512,
        decode_steps: int = 8,
        mesh: Mesh | None = None,
        memory_gib: float | None = None,
        vocab_size: int | None = None,
    ):
        max_model_len = config.context_length if max_model_len is None else max_model_len
        check_settings(
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            decode_steps=decode_steps,
            prefill_chunk=prefill_chunk,
            cache_dtype=cache_dtype,
        )
        self._vocab_size = real_vocab_size(vocab_size, tokenizer, config)
        self.max_model_len = -(-max_model_len // BLOCK) * BLOCK
        self.config, self.mesh, self.tokenizer = config, mesh, tokenizer
        self._cache_dtype, self._decode_steps = cache_dtype, decode_steps
        check_memory(
            config,
            num_slots=max_num_seqs,
            max_length=self.max_model_len,
            cache_dtype=cache_dtype,
            mesh=mesh,
            memory_gib=memory_gib,
        )
        self._params = for_decoding(params, config=config)
        self._batch = device.init_batch(
            config=config,
            mesh=mesh,
            num_slots=max_num_seqs,
            max_length=self.max_model_len,
            cache_dtype=cache_dtype,
            layer_by_layer=isinstance(self._params, PrepackedParams),
        )
        shards = _slot_shards(mesh, max_num_seqs)
        self._scheduler = Scheduler(
            config, num_slots=max_num_seqs, chunk=prefill_chunk, shards=shards
        )
        self._sampling = idle_slots(max_num_seqs, vocab_size=self._vocab_size)
        self._masks = Masks(max_num_seqs, config.vocab_size)
        self._table = None if tokenizer is None else token_bytes(tokenizer)
        self._sizes: set[int] = set()  # of prompt chunks whose program has been compiled
        self.on_new_size: Callable[[int], None] = lambda size: None
        self._events: list[Event] = []  # last events of requests cancelled between steps
        self._next_id = 0

    def memory(self) -> int:
        """Returns the bytes of the KV cache, summed over all devices."""
        num_slots = len(self._scheduler.running)
        return cache_bytes(self.config, num_slots, self.max_model_len, dtype=self._cache_dtype)

    def scorer(self, batch_size: int = 4) -> Scorer:
        """Returns a new Scorer for the same weights, with a cache of its own.

        Args:
          batch_size: rows per device that it computes at once; a CPU computes one.

        Raises:
          ConfigError: its cache does not fit into the memory that is left.
        """
        check_memory(
            self.config,
            num_slots=batch_size,
            max_length=self.max_model_len,
            cache_dtype=None,
            mesh=self.mesh,
            memory_gib=None,
        )
        return Scorer(
            self._params,
            self.config,
            batch_size=batch_size,
            max_length=self.max_model_len,
            mesh=self.mesh,
            vocab_size=self._vocab_size,
        )

    @property
    def params(self) -> Params | PrepackedParams:
        """The weights, as the engine keeps them (weights.for_decoding)."""
        return self._params

    @property
    def cache_dtype(self) -> str:
        """The dtype of the KV cache."""
        return self._cache_dtype or self.config.compute_dtype

    @property
    def max_num_seqs(self) -> int:
        """The number of decode slots."""
        return len(self._scheduler.running)

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running, or an event is pending."""
        return bool(self._events) or self._scheduler.busy

    @property
    def free_slots(self) -> int:
        """The number of decode slots without a request."""
        return sum(choice is None for choice in self._scheduler.running)

    def submit(self, request: Request, owner: Owner = ANYONE) -> list[int]:
        """Queues a request and returns n request ids, one for each of its completions.

        The completions share the prompt's prefill. Completion i samples with stream i of the seed.

        Args:
          owner: clients take turns for decode slots. Where all are in use, a client with more than
            its share gives one up; that completion starts again later, and gives the same tokens.

        Raises:
          ConfigError, DataError: the engine cannot run this request; the error gives the sizes.
        """
        check_request(
            request,
            self.config,
            vocab_size=self._vocab_size,
            max_length=self.max_model_len,
            tokenizer=self.tokenizer,
        )
        choices = [
            Choice(self._next_id + i, request, i, self._text_stream(request), owner)
            for i in range(request.sampling.n)
        ]
        self._next_id += len(choices)
        for choice in choices:
            self._scheduler.waiting.append(choice)
        return [choice.id for choice in choices]

    def cancel(self, request_id: int) -> None:
        """Cancels a waiting or running request.

        The next step returns its last event, with finish "cancelled". Cancelling a finished request
        has no effect.
        """
        choice = self._scheduler.remove(request_id)
        if choice is not None:
            self._events.append(_last_event(choice, "cancelled"))

    def step(self) -> list[Event]:
        """Runs one step and returns its events.

        A step admits requests, prefills prompt chunks and decodes up to decode_steps tokens per
        slot.
        """
        self._admit()
        first = self._prefill()
        decoding, new = self._scheduler.decoding, None
        if decoding.any():
            # Masks are computed while the devices prefill.
            waiting = {slot for slot in first if slot in self._masks}
            steps = self._masks.steps(decoding, self._decode_steps)
            self._batch, new, active = device.advance(
                self._params,
                self._batch,
                decoding,
                self._sampling,
                self._masks.next(decoding, waiting, steps),
                np.int32(steps),
                np.bool_(bool(self._scheduler.waiting)),
                config=self.config,
                mesh=self.mesh,
                room=self._decode_steps,
            )
        events, self._events = self._events, []
        if new is None:
            return events
        # The host waits for the devices only here.
        first, new, active = jax.device_get((first, new, active))
        for slot in np.flatnonzero(decoding).tolist():
            tokens, logprobs = new.tokens[slot], new.logprobs[slot]
            if slot in first:
                tokens = np.concatenate([first[slot][0][None], tokens])
                logprobs = np.concatenate([first[slot][1][None], logprobs])
            count = int(np.argmax(np.append(tokens, -1) < 0))
            events += self._new_tokens(slot, tokens[:count], logprobs[:count], bool(active[slot]))
        return events

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """Runs all requests; returns completions in order, the n of a request consecutively."""
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
        for choice, placement in self._scheduler.admit():
            if placement.source is not None and placement.source != placement.slot:
                self._batch = device.copy_slot(
                    self._batch,
                    np.int32(placement.source),
                    np.int32(placement.slot),
                    np.int32(placement.shared),
                    mesh=self.mesh,
                )
            write_slot(
                self._sampling, placement.slot, choice.request.sampling, stream=choice.stream
            )
            grammar = choice.request.grammar
            self._masks.put(placement.slot, None if grammar is None else grammar.start())

    def _prefill(self) -> dict[int, tuple]:
        """Prefills prompt chunks, and samples the first token of each completed prompt.

        Returns:
          A map from slot to (first token, log-probability), both still on the devices.
        """
        first = {}
        for work in self._scheduler.prefill():
            if isinstance(work, Chunk):
                if (size := work.tokens.shape[1]) not in self._sizes:
                    self.on_new_size(size)
                    self._sizes.add(size)
                self._batch = device.prefill(
                    self._params, self._batch, *work, config=self.config, mesh=self.mesh
                )
            else:
                first[work] = self._sample_first(work)
        return first

    def _sample_first(self, slot: int) -> tuple:
        tokens = self._scheduler.choice(slot).request.prompt
        prompt = np.full(self.max_model_len, self.config.vocab_size, np.int32)
        prompt[: len(tokens)] = tokens
        sampling = jax.tree.map(lambda x: x[slot : slot + 1] if np.ndim(x) else x, self._sampling)
        self._batch, token, logprob = device.sample_first(
            self._batch,
            np.int32(slot),
            prompt,
            np.int32(len(tokens)),
            sampling,
            self._masks.first(slot),
            mesh=self.mesh,
        )
        return token, logprob

    def _new_tokens(self, slot: int, tokens, logprobs, active: bool) -> list[Event]:
        choice, events = self._scheduler.choice(slot), []
        sampling, matcher = choice.request.sampling, self._masks.matcher(slot)
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            choice.count += 1
            if matcher is not None:
                matcher.consume(token)
                active = active and not matcher.stopped
            if choice.count <= choice.sent:
                continue
            text = "" if choice.text is None else choice.text.add(token)
            events.append(Event(choice.id, token, text, logprob if sampling.logprobs else None))
            if choice.text is not None and choice.text.stopped:
                active = False
                break
        if not active:
            stopped = choice.text is not None and choice.text.stopped
            limit = choice.count == sampling.max_new_tokens
            if matcher is not None and matcher.stopped:
                limit = bool(matcher.error)  # complete with its last token, or cut off
            events.append(_last_event(choice, "length" if limit and not stopped else "stop"))
            self._release(slot)
        return events

    def _release(self, slot: int) -> None:
        self._scheduler.release(slot)
        self._masks.put(slot, None)

    def _text_stream(self, request: Request) -> TextStream | None:
        return None if self._table is None else TextStream(self._table, request.sampling.stop)


def _last_event(choice: Choice, finish: str) -> Event:
    return Event(choice.id, None, "" if choice.text is None else choice.text.finish(), None, finish)


def _slot_shards(mesh: Mesh | None, num_slots: int) -> int:
    """Returns how many groups of devices share the slots; 1 if every device has all of them."""
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return 1 if num_slots % shards else shards
