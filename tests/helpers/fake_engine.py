"""An engine without a model: completions depend only on the request, the test sets the speed."""

import hashlib
import threading
import time

from qwen_jax.errors import ConfigError
from qwen_jax.inference.batching.fair_queue import ANYONE, Owner
from qwen_jax.inference.request import Event, Request
from qwen_jax.inference.stream import TextStream, token_bytes

WORDS = [word.encode() for word in ("the ", "sea ", "é", "日本", "is ", "blue\n", "END", "a")]


class FakeEngine:
    """The part of inference.engine.Engine that the server uses.

    Args:
      seconds: the duration of each step.
      fail_at: the step that raises RuntimeError.
      unending: completions stop only at their maximum length.
    """

    def __init__(
        self,
        tokenizer,
        *,
        max_num_seqs=4,
        max_model_len=256,
        seconds=0.0,
        fail_at=None,
        unending=False,
    ):
        self.max_num_seqs, self.max_model_len = max_num_seqs, max_model_len
        self.seconds, self.fail_at, self.unending = seconds, fail_at, unending
        self.table, self.end = token_bytes(tokenizer), tokenizer.end_of_text
        self.unblocked = threading.Event()  # not set: steps wait
        self.unblocked.set()
        self.stepping = threading.Event()  # a step has started
        self.waiting, self.running, self.streams = [], {}, {}
        self.prompts = set()  # of all submitted requests
        self.owners: list[Owner] = []  # of submitted requests, in order
        self.steps, self.next_id, self.max_running, self.cancelled = 0, 0, 0, 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, request: Request, owner: Owner = ANYONE) -> list[int]:
        if len(request.prompt) + request.sampling.max_new_tokens > self.max_model_len:
            raise ConfigError("the request is too long.", "submit", "request fewer tokens.")
        ids = list(range(self.next_id, self.next_id + request.sampling.n))
        self.next_id += len(ids)
        self.prompts.add(request.prompt)
        self.owners.append(owner)
        for sample, request_id in enumerate(ids):
            self.waiting.append((request_id, request, self.completion(request, sample)))
        return ids

    def cancel(self, request_id: int) -> None:
        self.cancelled += 1
        self.waiting = [one for one in self.waiting if one[0] != request_id]
        self.running.pop(request_id, None)

    def completion(self, request: Request, sample: int) -> list[int]:
        """Returns tokens: bytes of WORDS, chosen by a hash of prompt and seed, then a stop id."""
        seed = 0 if request.sampling.temperature == 0 else request.sampling.seed * 1000 + sample
        raw, index = b"", 0
        while len(raw) < request.sampling.max_new_tokens:
            digest = hashlib.sha256(f"{request.prompt} {seed} {index}".encode()).digest()
            if not self.unending and index > 2 and digest[1] < 20:
                return [*raw, self.end]
            raw += WORDS[digest[0] % len(WORDS)]
            index += 1
        return list(raw[: request.sampling.max_new_tokens])

    def step(self) -> list[Event]:
        self.stepping.set()
        self.unblocked.wait()
        time.sleep(self.seconds)
        self.steps += 1
        if self.fail_at is not None and self.steps >= self.fail_at:
            raise RuntimeError("out of memory")
        while self.waiting and len(self.running) < self.max_num_seqs:
            request_id, request, tokens = self.waiting.pop(0)
            self.running[request_id] = (
                request,
                iter(tokens),
                TextStream(self.table, request.sampling.stop),
                [0],
            )
        self.max_running = max(self.max_running, len(self.running))
        return [event for request_id in list(self.running) for event in self._advance(request_id)]

    def _advance(self, request_id: int) -> list[Event]:
        request, tokens, stream, count = self.running[request_id]
        token = next(tokens)
        if token in request.sampling.stop_token_ids:
            return self._end(request_id, stream, "stop")
        count[0] += 1
        text = stream.add(token)
        events = [Event(request_id, token, text, -0.5 if request.sampling.logprobs else None)]
        if stream.stopped:
            return events + self._end(request_id, stream, "stop")
        if count[0] == request.sampling.max_new_tokens:
            return events + self._end(request_id, stream, "length")
        return events

    def _end(self, request_id: int, stream: TextStream, finish: str) -> list[Event]:
        del self.running[request_id]
        return [Event(request_id, None, stream.finish(), None, finish)]


def complete(engine, request: Request) -> list[tuple[str, str]]:
    """Returns (text, finish) of each sample, computed offline."""
    ids = engine.submit(request)
    texts, finish = {i: "" for i in ids}, {}
    while engine.busy:
        for event in engine.step():
            texts[event.request_id] += event.text
            if event.finish:
                finish[event.request_id] = event.finish
    return [(texts[i], finish[i]) for i in ids]
