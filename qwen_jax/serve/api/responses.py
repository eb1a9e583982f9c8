"""Converts engine events to the JSON of a response, complete or in streamed chunks."""

import codecs
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from qwen_jax.inference.request import Event
from qwen_jax.serve.api.protocol import ApiRequest
from qwen_jax.serve.chat.deltas import DeltaWriter, call_id
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer.dialects.answer import AnswerStream, read_answer


class CompletionResponse:
    """The response to one request, complete (`add`) or in chunks (`chunks`).

    Args:
      prompt_tokens: the total over all prompts of the request.
      token_bytes: the bytes of each id, which may hold only part of a character.
    """

    def __init__(
        self, request: ApiRequest, model: str, prompt_tokens: int, token_bytes: dict[int, bytes]
    ):
        self._request, self._token_bytes = request, token_bytes
        self._head = {
            "id": ("chatcmpl-" if request.chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }
        self._prompt_tokens, self._new_tokens = prompt_tokens, 0
        count = sum(one.sampling.n for one in request.engine_requests)
        self._events: list[list[Event]] = [[] for _ in range(count)]  # by choice, unless streamed
        self._offsets = [TextOffsets() for _ in range(count)]
        self._answers = [AnswerStream(request.answer) for _ in range(count)]
        self._writers = [DeltaWriter() for _ in range(count)]

    def add(self, events: Sequence[tuple[int, Event]]) -> None:
        """Adds events, each with its choice, to a complete response."""
        for choice, event in events:
            self._new_tokens += event.token is not None
            self._events[choice].append(event)

    def chunks(self, events: Sequence[tuple[int, Event]]) -> list[dict[str, Any]]:
        """Returns chunks of a stream for events, each with its choice.

        There is at most one per choice, unless it has calls of tools or thoughts.
        """
        by_choice: dict[int, list[Event]] = {}
        for choice, event in events:
            self._new_tokens += event.token is not None
            by_choice.setdefault(choice, []).append(event)
        chunks = []
        for choice, own in by_choice.items():
            text, finish = "".join(event.text for event in own), own[-1].finish
            scored = _with_logprobs(own)
            logprobs = self._logprobs(choice, scored) if scored else None
            if self._request.chat:
                contents, finish = self._deltas(choice, text, finish)
            else:
                contents = [{"text": text}]
                if not (text or finish):
                    contents = []
            ids = self._ids(own)
            if (logprobs or ids.get("token_ids")) and not contents:
                contents = [{"delta": {}} if self._request.chat else {"text": ""}]
            for index, content in enumerate(contents):
                chunks.append(
                    self._chunk(
                        {
                            "index": choice,
                            **content,
                            "logprobs": logprobs if index == 0 else None,
                            "finish_reason": finish if index == len(contents) - 1 else None,
                            **(ids if index == 0 else {}),
                        }
                    )
                )
        return chunks

    def _deltas(
        self, choice: int, text: str, finish: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Returns the deltas that a choice's text completes, and how the choice has finished."""
        answer, writer = self._answers[choice], self._writers[choice]
        pieces = answer.add(text) if text else []
        if finish is not None:
            pieces += answer.finish()
        deltas = [{"delta": writer.delta(piece)} for piece in pieces if piece.shown]
        if finish is None:
            return deltas, None
        if writer.calls or not deltas:
            deltas.append({"delta": {}})
        return deltas, finish_reason(finish, writer.calls)

    def first_chunks(self) -> list[dict[str, Any]]:
        """Returns the chunks that start a stream."""
        if not self._request.chat:
            return []
        return [
            self._chunk(
                {
                    "index": choice,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                }
            )
            | (self._prompt_ids(choice) if choice == 0 else {})
            for choice in range(len(self._events))
        ]

    def usage_chunks(self) -> list[dict[str, Any]]:
        """Returns the last chunk of a stream, if the request sets include_usage."""
        if not self._request.include_usage:
            return []
        return [self._object(stream=True) | {"choices": [], "usage": self._usage()}]

    def error_chunk(self, error: ApiError) -> dict[str, Any]:
        """Returns the chunk of an error, which ends a stream."""
        return error.body()

    def complete(self) -> dict[str, Any]:
        """Returns the response to a non-streaming request."""
        choices = []
        for choice, events in enumerate(self._events):
            text, finish = "".join(event.text for event in events), events[-1].finish
            content: dict[str, Any] = {"text": text}
            if self._request.chat:
                content, finish = self._message(text, finish)
            logprobs = None
            if self._request.logprobs:
                logprobs = self._logprobs(choice, _with_logprobs(events))
            choices.append(
                {
                    "index": choice,
                    **content,
                    "logprobs": logprobs,
                    "finish_reason": finish,
                    **self._ids(events),
                    **({} if self._request.chat else self._prompt_ids(choice)),
                }
            )
        return self._response(choices) | (self._prompt_ids(0) if self._request.chat else {})

    def _ids(self, events: Sequence[Event]) -> dict[str, Any]:
        """Returns vLLM's `token_ids` of a choice, if they are requested."""
        if not self._request.token_ids:
            return {}
        return {"token_ids": [event.token for event in events if event.token is not None]}

    def _prompt_ids(self, choice: int) -> dict[str, Any]:
        """Returns vLLM's `prompt_token_ids` of a choice, if they are requested."""
        if not self._request.token_ids:
            return {}
        for request in self._request.engine_requests:
            if choice < request.sampling.n:
                return {"prompt_token_ids": list(request.prompt)}
            choice -= request.sampling.n
        raise IndexError(choice)

    def _message(self, text: str, finish: str | None) -> tuple[dict[str, Any], str | None]:
        """Returns the message of a whole answer, and how it has finished."""
        answer = read_answer(text, self._request.answer)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.content or (None if answer.calls else ""),
            "refusal": None,
        }
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [
                {
                    "id": call_id(),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        return {"message": message}, finish_reason(finish, len(answer.calls))

    def _response(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._object(stream=False) | {"choices": choices, "usage": self._usage()}

    def _object(self, *, stream: bool) -> dict[str, Any]:
        kind = "chat.completion" + ".chunk" * stream if self._request.chat else "text_completion"
        return {**self._head, "object": kind}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self._request.include_usage else {}
        return self._object(stream=True) | {"choices": [choice]} | usage

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._new_tokens,
            "total_tokens": self._prompt_tokens + self._new_tokens,
        }

    def _logprobs(self, choice: int, events: Sequence[Event]) -> dict[str, Any]:
        """Returns log-probabilities of a choice's next tokens, under the untruncated softmax."""
        tokens = [
            TokenLogprob(self._token_bytes[event.token], event.logprob)
            for event in events
            if event.token is not None
        ]
        return show_logprobs(tokens, self._offsets[choice], chat=self._request.chat)


def finish_reason(finish: str | None, num_calls: int) -> str | None:
    """Returns OpenAI's finish_reason of a choice with this many calls of tools."""
    return "tool_calls" if finish == "stop" and num_calls else finish


class TokenLogprob(NamedTuple):
    """A token, its log-probability (None: it is the first of all), and alternatives to it."""

    raw: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()


def show_logprobs(
    tokens: Sequence[TokenLogprob], offsets: "TextOffsets", *, chat: bool, top: int = 0
) -> dict[str, Any]:
    """Returns the JSON of log-probabilities.

    Args:
      offsets: counts the characters before each token.
      chat: whether the form is that of a chat completion, or of a text completion.
      top: whether, and how many, alternatives were requested.
    """
    if chat:
        return {
            "content": [
                _entry(one.raw, one.logprob)
                | {"top_logprobs": [_entry(raw, logprob) for raw, logprob in one.top]}
                for one in tokens
            ],
            "refusal": None,
        }
    return {
        "tokens": [token_name(one.raw) for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [_alternatives(one) for one in tokens] if top else None,
        "text_offset": [offsets.add(one.raw) for one in tokens],
    }


def _alternatives(one: TokenLogprob) -> dict[str, float] | None:
    """Returns the alternatives to a token, which itself is always one of them."""
    if one.logprob is None:
        return None
    found = {token_name(raw): logprob for raw, logprob in one.top}
    return found | {token_name(one.raw): one.logprob}


def _entry(raw: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token_name(raw), "logprob": logprob, "bytes": list(raw)}


class TextOffsets:
    """Counts characters from the tokens, not from released text, which may be held back for a stop.

    A character that spans several tokens starts at the first of them and is counted at the last.
    """

    def __init__(self):
        self._characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: bytes) -> int:
        """Returns the number of complete characters before a token."""
        before = self._characters
        self._characters += len(self._decoder.decode(token))
        return before


def _with_logprobs(events: Sequence[Event]) -> list[Event]:
    """Returns the events of tokens that have log-probabilities."""
    return [event for event in events if event.token is not None and event.logprob is not None]


def token_name(raw: bytes) -> str:
    """Returns a token as a string; a partial character is in OpenAI's notation."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def dumps(content) -> bytes:
    """Serializes to JSON; lone surrogates, which errors may quote from a request, become '?'."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )
