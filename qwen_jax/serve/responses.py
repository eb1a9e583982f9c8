"""Converts engine events to the JSON of a response, complete or in streamed chunks."""

import codecs
import json
import secrets
import time
from typing import Any

from qwen_jax.inference.request import Event
from qwen_jax.serve.protocol import ApiRequest


class CompletionResponse:
    """Accumulates the response to one request.

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
        self._texts: list[list[str]] = [[] for _ in range(count)]
        self._offsets = [TextOffsets(token_bytes) for _ in range(count)]
        # Tokens with their log-probabilities, by choice.
        self._events: list[list[tuple[Event, int]]] = [[] for _ in range(count)]
        self._finish: list[str | None] = [None] * count

    def add(self, choice: int, event: Event) -> dict[str, Any] | None:
        """Adds an event; returns its stream chunk, or None if there is nothing to send."""
        self._new_tokens += event.token is not None
        logprobs = None
        if event.token is not None and event.logprob is not None:
            located = (event, self._offsets[choice].add(event.token))
            self._events[choice].append(located)
            logprobs = self._logprobs([located])
        self._texts[choice].append(event.text)
        self._finish[choice] = event.finish
        if not (event.text or logprobs or event.finish):
            return None
        if self._request.chat:
            content = {"delta": {"content": event.text} if event.text else {}}
        else:
            content = {"text": event.text}
        return self._chunk(
            {"index": choice, **content, "logprobs": logprobs, "finish_reason": event.finish}
        )

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
            for choice in range(len(self._texts))
        ]

    def usage_chunk(self) -> dict[str, Any]:
        """Returns the last chunk of a stream whose request sets include_usage."""
        return self._object(stream=True) | {"choices": [], "usage": self._usage()}

    def complete(self) -> dict[str, Any]:
        """Returns the response to a non-streaming request."""
        choices = []
        for choice, texts in enumerate(self._texts):
            text = "".join(texts)
            content = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if self._request.chat
                else {"text": text}
            )
            logprobs = self._logprobs(self._events[choice]) if self._request.logprobs else None
            choices.append(
                {
                    "index": choice,
                    **content,
                    "logprobs": logprobs,
                    "finish_reason": self._finish[choice],
                }
            )
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

    def _logprobs(self, located: list[tuple[Event, int]]) -> dict[str, Any]:
        """Returns the sampled tokens' log-probabilities under the untruncated softmax.

        Args:
          located: tokens, each with its offset in the text.
        """
        events = [event for event, _ in located]
        raw = [self._token_bytes[event.token] for event in events if event.token is not None]
        if self._request.chat:
            return {
                "content": [
                    {
                        "token": _name(one),
                        "logprob": event.logprob,
                        "bytes": list(one),
                        "top_logprobs": [],
                    }
                    for event, one in zip(events, raw, strict=True)
                ],
                "refusal": None,
            }
        return {
            "tokens": [_name(one) for one in raw],
            "token_logprobs": [event.logprob for event in events],
            "top_logprobs": None,
            "text_offset": [offset for _, offset in located],
        }


class TextOffsets:
    """Counts characters from the tokens, not from released text, which may be held back for a stop.

    A character that spans several tokens starts at the first of them and is counted at the last.
    """

    def __init__(self, token_bytes: dict[int, bytes]):
        self._token_bytes, self._characters = token_bytes, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> int:
        """Returns the number of complete characters before the token."""
        before = self._characters
        self._characters += len(self._decoder.decode(self._token_bytes[token]))
        return before


def _name(raw: bytes) -> str:
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
