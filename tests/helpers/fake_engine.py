"""An engine without a model: answers depend on the request alone, their speed is the test's."""

import hashlib
import threading
import time

from qwen_jax.errors import ConfigError
from qwen_jax.inference.request import Event, Request
from qwen_jax.inference.stream import TextStream, token_bytes

WORDS = [word.encode() for word in ("the ", "sea ", "é", "日本", "is ", "blue\n", "END", "a")]


class FakeEngine:
    """Has what the server uses of inference.engine.Engine.

    Args:
      seconds: of each step.
      fail_at: the step that raises RuntimeError.
      unending: answers stop at their length alone.
    """

    def __init__(self, tokenizer, *, rows=4, slots=256, seconds=0.0, fail_at=None, unending=False):
        self.rows, self.slots, self.seconds = rows, slots, seconds
        self.fail_at, self.unending = fail_at, unending
        self.table, self.end = token_bytes(tokenizer), tokenizer.end_of_text
        self.gate = threading.Event()  # closed: no step goes on
        self.gate.set()
        self.stepping = threading.Event()  # a step has begun
        self.waiting, self.running, self.streams = [], {}, {}
        self.prompts = set()  # that were submitted
        self.steps, self.next_id, self.most_running, self.cancelled = 0, 0, 0, 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, request: Request) -> list[int]:
        if len(request.prompt) + request.sampling.max_new_tokens > self.slots:
            raise ConfigError("too long for the fake's slots.", "submit", "ask for less.")
        ids = list(range(self.next_id, self.next_id + request.sampling.n))
        self.next_id += len(ids)
        self.prompts.add(request.prompt)
        for sample, request_id in enumerate(ids):
            self.waiting.append((request_id, request, self.answer(request, sample)))
        return ids

    def cancel(self, request_id: int) -> None:
        self.cancelled += 1
        self.waiting = [one for one in self.waiting if one[0] != request_id]
        self.running.pop(request_id, None)

    def answer(self, request: Request, sample: int) -> list[int]:
        """Its tokens: bytes of WORDS drawn by a hash of all that may matter, then the end."""
        draw = 0 if request.sampling.temperature == 0 else request.sampling.seed * 1000 + sample
        raw, place = b"", 0
        while len(raw) < request.sampling.max_new_tokens:
            digest = hashlib.sha256(f"{request.prompt} {draw} {place}".encode()).digest()
            if not self.unending and place > 2 and digest[1] < 20:
                return [*raw, self.end]
            raw += WORDS[digest[0] % len(WORDS)]
            place += 1
        return list(raw[: request.sampling.max_new_tokens])

    def step(self) -> list[Event]:
        self.stepping.set()
        self.gate.wait()
        time.sleep(self.seconds)
        self.steps += 1
        if self.fail_at is not None and self.steps >= self.fail_at:
            raise RuntimeError("out of memory")
        while self.waiting and len(self.running) < self.rows:
            request_id, request, tokens = self.waiting.pop(0)
            self.running[request_id] = (
                request,
                iter(tokens),
                TextStream(self.table, request.sampling.stop),
                [0],
            )
        self.most_running = max(self.most_running, len(self.running))
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
    """(text, finish) of each sample, computed offline."""
    ids = engine.submit(request)
    texts, finish = {i: "" for i in ids}, {}
    while engine.busy:
        for event in engine.step():
            texts[event.request_id] += event.text
            if event.finish:
                finish[event.request_id] = event.finish
    return [(texts[i], finish[i]) for i in ids]
