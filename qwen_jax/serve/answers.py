"""The engine's events -> the JSON of an answer, whole or in pieces."""

import json
import secrets
import time
from typing import Any

from qwen_jax.inference.request import Event
from qwen_jax.serve.calls import Call


class Answer:
    """One call's answer as it grows.

    Args:
      prompt_tokens: of all the call's prompts together.
      token_bytes: what each id stands for, which may be part of a character.
    """

    def __init__(self, call: Call, model: str, prompt_tokens: int, token_bytes: dict[int, bytes]):
        self._call, self._token_bytes = call, token_bytes
        self._head = {
            "id": ("chatcmpl-" if call.chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }
        self._prompt_tokens, self._new_tokens = prompt_tokens, 0
        count = sum(request.sampling.n for request in call.requests)
        self._texts: list[list[str]] = [[] for _ in range(count)]
        self._lengths = [0] * count  # characters so far
        self._events: list[list[Event]] = [[] for _ in range(count)]  # with log-probabilities
        self._finish: list[str | None] = [None] * count

    def add(self, choice: int, event: Event) -> dict[str, Any] | None:
        """Takes one event; the piece of a stream that it makes, if it says anything."""
        self._new_tokens += event.token is not None
        has_logprob = event.token is not None and event.logprob is not None
        logprobs = self._logprobs([event], self._lengths[choice]) if has_logprob else None
        self._texts[choice].append(event.text)
        self._lengths[choice] += len(event.text)
        if has_logprob:
            self._events[choice].append(event)
        self._finish[choice] = event.finish
        if not (event.text or has_logprob or event.finish):
            return None
        if self._call.chat:
            said = {"delta": {"content": event.text} if event.text else {}}
        else:
            said = {"text": event.text}
        return self._piece(
            {"index": choice, **said, "logprobs": logprobs, "finish_reason": event.finish}
        )

    def openings(self) -> list[dict[str, Any]]:
        """What a stream starts with."""
        if not self._call.chat:
            return []
        return [
            self._piece(
                {
                    "index": choice,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                }
            )
            for choice in range(len(self._texts))
        ]

    def usage_piece(self) -> dict[str, Any]:
        """What a stream ends with if it was asked for."""
        return self._object(stream=True) | {"choices": [], "usage": self._usage()}

    def whole(self) -> dict[str, Any]:
        """The answer of a call that is not streamed."""
        choices = []
        for choice, texts in enumerate(self._texts):
            text = "".join(texts)
            said = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if self._call.chat
                else {"text": text}
            )
            logprobs = self._logprobs(self._events[choice], 0) if self._call.logprobs else None
            choices.append(
                {
                    "index": choice,
                    **said,
                    "logprobs": logprobs,
                    "finish_reason": self._finish[choice],
                }
            )
        return self._object(stream=False) | {"choices": choices, "usage": self._usage()}

    def _object(self, *, stream: bool) -> dict[str, Any]:
        kind = "chat.completion" + ".chunk" * stream if self._call.chat else "text_completion"
        return {**self._head, "object": kind}

    def _piece(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self._call.include_usage else {}
        return self._object(stream=True) | {"choices": [choice]} | usage

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._new_tokens,
            "total_tokens": self._prompt_tokens + self._new_tokens,
        }

    def _raw(self, events: list[Event]) -> list[bytes]:
        return [self._token_bytes[event.token] for event in events if event.token is not None]

    def _logprobs(self, events: list[Event], offset: int) -> dict[str, Any]:
        """Of the chosen tokens: log of the untruncated softmax.

        Args:
          offset: characters of the answer before the events.
        """
        if self._call.chat:
            return {
                "content": [
                    {
                        "token": _name(raw),
                        "logprob": event.logprob,
                        "bytes": list(raw),
                        "top_logprobs": [],
                    }
                    for event, raw in zip(events, self._raw(events), strict=True)
                ],
                "refusal": None,
            }
        offsets = []
        for event in events:
            offsets.append(offset)
            offset += len(event.text)
        return {
            "tokens": [_name(raw) for raw in self._raw(events)],
            "token_logprobs": [event.logprob for event in events],
            "top_logprobs": None,
            "text_offset": offsets,
        }


def _name(raw: bytes) -> str:
    """A token as a string; one that is part of a character as OpenAI writes it."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def dumps(content) -> bytes:
    """JSON; halves of characters that a call brought along, in a refusal, become '?'."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )
