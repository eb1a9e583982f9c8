"""Responses with the prompt's log-probabilities, or with alternatives to each token.

Both are computed after the completion by inference.scoring, in one pass over prompt and completion.
They may differ in the last bits from those that come with sampled tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from qwen_jax.inference.request import Event, Request
from qwen_jax.inference.scoring import Row, Scores
from qwen_jax.inference.stream import TextStream
from qwen_jax.serve.api.protocol import ApiRequest, Scoring
from qwen_jax.serve.api.responses import (
    CompletionResponse,
    TextOffsets,
    TokenLogprob,
    show_logprobs,
)
from qwen_jax.tokenizer.bpe import Tokenizer


class ScoredResponse(CompletionResponse):
    """The response to a request with `scoring`: its events, then its rows, then its scores.

    Args:
      request, model, token_bytes: as in CompletionResponse.
      tokenizer: shows the prompt as text.
    """

    def __init__(
        self,
        request: ApiRequest,
        model: str,
        token_bytes: dict[int, bytes],
        tokenizer: Tokenizer,
    ):
        prompt_tokens = sum(len(one.prompt) for one in request.engine_requests)
        super().__init__(request, model, prompt_tokens, token_bytes)
        self._tokenizer = tokenizer
        assert request.scoring is not None
        by_scorer = request.scoring.generate and not needs_engine(request)
        self._parts = [
            _Choice(one, by_scorer)
            for one in request.engine_requests
            for _ in range(one.sampling.n)
        ]

    def rows(self) -> list[Row]:
        """Returns what to score for each choice, after its events."""
        assert self._request.scoring is not None
        for part, events in zip(self._parts, self._events, strict=True):
            if events:
                part.take(events, self._token_bytes, self._tokenizer.end_of_text)
        return [part.row(self._request.scoring) for part in self._parts]

    def complete_scored(self, scores: Sequence[Scores]) -> dict[str, Any]:
        """Returns the response.

        Args:
          scores: of each row; empty if no log-probabilities were requested.
        """
        choices = []
        for index, part in enumerate(self._parts):
            logprobs = None
            if scores:
                found = scores[index]
                if part.by_scorer:
                    found = part.take_most_likely(found, self._token_bytes)
                    self._new_tokens += len(part.tokens)
                logprobs = self._scored_logprobs(part, found)
            finish: str | None = part.finish
            if self._request.chat:
                content, finish = self._message(part.text, finish)
            else:
                content = {"text": self._shown_prompt(part) + part.text}
            choices.append(
                {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
            )
        return self._response(choices)

    def _shown_prompt(self, part: "_Choice") -> str:
        assert self._request.scoring is not None
        return self._tokenizer.decode(part.prompt) if self._request.scoring.echo else ""

    def _scored_logprobs(self, part: "_Choice", scores: Scores) -> dict[str, Any]:
        scoring, table = self._request.scoring, self._token_bytes
        assert scoring is not None
        ids = part.scored_ids(scoring.echo)
        tokens = [TokenLogprob(table[ids[0]], None)] if scoring.echo else []
        tops = scores.top or ((),) * len(scores.logprobs)
        for token, logprob, top in zip(ids[len(tokens) :], scores.logprobs, tops, strict=True):
            alternatives = tuple((table[i], value) for i, value in top[: scoring.top])
            tokens.append(TokenLogprob(table[token], logprob, alternatives))
        return show_logprobs(tokens, TextOffsets(), chat=self._request.chat, top=scoring.top or 0)


def needs_engine(request: ApiRequest) -> bool:
    """Returns whether a request with `scoring` has completions that the engine samples.

    The scorer itself finds one most likely token, which is what lm-eval's requests want.
    """
    scoring = request.scoring
    assert scoring is not None
    if not scoring.generate:
        return False
    if not scoring.echo or scoring.top is None:
        return True
    return any(
        (one.sampling.max_new_tokens, one.sampling.temperature, one.sampling.repetition_penalty)
        != (1, 0, 1)
        for one in request.engine_requests
    )


class _Choice:
    """A choice: its prompt, and its completion once it is known.

    Args:
      by_scorer: whether the completion is the most likely token after the prompt.
    """

    def __init__(self, request: Request, by_scorer: bool):
        self.prompt, self._sampling = request.prompt, request.sampling
        self.by_scorer = by_scorer
        self.tokens: list[int] = []
        self.text, self.finish = "", "length"
        self._end: tuple[int, ...] = ()  # the special token that ended the completion

    def take(self, events: Sequence[Event], table: dict[int, bytes], end_of_text: int) -> None:
        """Sets the completion."""
        self.tokens = [event.token for event in events if event.token is not None]
        self.text = "".join(event.text for event in events)
        self.finish = events[-1].finish or "length"
        stream = TextStream(table, self._sampling.stop)
        for token in self.tokens:
            stream.add(token)
        self._end = (end_of_text,) if self.finish == "stop" and not stream.stopped else ()

    def take_most_likely(self, scores: Scores, table: dict[int, bytes]) -> Scores:
        """Sets the completion to the most likely token; returns the scores with that token's."""
        token, logprob = scores.top[-1][0]
        if token in self._sampling.stop_token_ids:
            self._end, self.finish = (token,), "stop"
        else:
            stream = TextStream(table, self._sampling.stop)
            self.tokens = [token]
            self.text = stream.add(token) + stream.finish()
            self.finish = "stop" if stream.stopped else "length"
        return dataclasses.replace(scores, logprobs=(*scores.logprobs[:-1], logprob))

    def scored_ids(self, echo: bool) -> list[int]:
        """Returns the ids that have log-probabilities, or are the first of the prompt.

        With `echo`, the special token that ended the completion is one of them: clients such as
        lm-eval count on the last entry being a new token.
        """
        return [*self.prompt, *self.tokens, *self._end] if echo else self.tokens

    def row(self, scoring: Scoring) -> Row:
        """Returns what to score."""
        ids = [*self.prompt, *self.tokens]
        if scoring.echo:
            ids += self._end
        first = 1 if scoring.echo else len(self.prompt)
        pairs = [(at - 1, ids[at]) for at in range(first, len(ids))]
        top = scoring.top or 0
        if self.by_scorer:  # whatever comes next: the best alternative
            pairs.append((len(self.prompt) - 1, self.prompt[0]))
            return Row(self.prompt, tuple(pairs), max(top, 1), len(self.prompt))
        return Row(tuple(ids[:-1] or ids), tuple(pairs), top, len(self.prompt))
