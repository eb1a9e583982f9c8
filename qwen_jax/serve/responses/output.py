"""The response of /v1/responses: items of output, whole or as a stream of events."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from qwen_jax.inference.request import Event
from qwen_jax.serve.chat.deltas import call_id
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.responses.request import ResponsesRequest
from qwen_jax.tokenizer.dialects.answer import AnswerStream
from qwen_jax.tokenizer.dialects.stream import Piece

_ITEMS = {"content": "message", "reasoning": "reasoning", "name": "function_call"}


class ResponsesResponse:
    """The response to one request, complete (`add`) or in events (`chunks`).

    Args:
      prompt_tokens: tokens of the prompt.
    """

    def __init__(
        self,
        request: ResponsesRequest,
        model: str,
        prompt_tokens: int,
        token_bytes: dict[int, bytes],
    ):
        del token_bytes  # for log-probabilities, which this route does not have
        self._answer = AnswerStream(request.answer)
        self._head = {
            "id": _new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            **request.shown,
        }
        self._prompt_tokens, self._new_tokens, self._thought_tokens = prompt_tokens, 0, 0
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the last item, while it grows
        self._sequence = 0
        self._finish = "stop"

    def add(self, events: Sequence[tuple[int, Event]]) -> None:
        """Adds events, each with its choice, which is 0, to a complete response."""
        self._advance(events)

    def complete(self) -> dict[str, Any]:
        """Returns the response to a non-streaming request."""
        return self._response(self._status())

    def first_chunks(self) -> list[dict[str, Any]]:
        """Returns the events that start a stream."""
        return [
            self._event(f"response.{kind}", response=self._response("in_progress"))
            for kind in ("created", "in_progress")
        ]

    def chunks(self, events: Sequence[tuple[int, Event]]) -> list[dict[str, Any]]:
        """Returns the events of a stream for events of the engine."""
        return self._advance(events)

    def usage_chunks(self) -> list[dict[str, Any]]:
        """Returns nothing: the last event has the usage."""
        return []

    def error_chunk(self, error: ApiError) -> dict[str, Any]:
        """Returns the event of an error."""
        body = error.body()["error"]
        return self._event("error", **{name: body[name] for name in ("code", "message", "param")})

    def _advance(self, events: Sequence[tuple[int, Event]]) -> list[dict[str, Any]]:
        shown = []
        for _, event in events:
            self._new_tokens += event.token is not None
            pieces = self._answer.add(event.text) if event.text else []
            if self._answer.thinking and event.token is not None:
                self._thought_tokens += 1
            if event.finish is not None:
                pieces += self._answer.finish()
                self._finish = event.finish
            for piece in pieces:
                shown += self._piece(piece) if piece.shown else []
            if event.finish is not None:
                shown += self._close("completed" if event.finish == "stop" else "incomplete")
                if not self._items:  # an empty answer is a message without text
                    shown += self._begin(Piece("content", ""))
                    shown += self._close("completed" if event.finish == "stop" else "incomplete")
                status = self._status()
                shown.append(self._event(f"response.{status}", response=self._response(status)))
        return shown

    def _piece(self, piece: Piece) -> list[dict[str, Any]]:
        events = []
        if piece.kind == "name":
            return self._close("completed") + self._begin(piece)
        if piece.kind != "arguments" and (
            self._open is None or self._open["type"] != _ITEMS[piece.kind]
        ):
            events += self._close("completed") + self._begin(piece)
        item = self._open
        assert item is not None, "arguments follow a name"
        if item["type"] == "function_call":
            item["arguments"] += piece.text
            kind, at = "function_call_arguments", {}
        else:
            item["content"][0]["text"] += piece.text
            kind, at = _text_kind(item), {"content_index": 0}
        more = {"logprobs": []} if kind == "output_text" else {}
        events.append(
            self._event(f"response.{kind}.delta", **self._at(item), **at, delta=piece.text, **more)
        )
        return events

    def _begin(self, piece: Piece) -> list[dict[str, Any]]:
        """Opens the item of a piece."""
        kind = _ITEMS[piece.kind]
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        if kind == "function_call":
            item |= {"id": _new_id("fc"), "call_id": call_id(), "name": piece.text, "arguments": ""}
        elif kind == "reasoning":
            item |= {"id": _new_id("rs"), "summary": [], "content": []}
        else:
            item |= {"id": _new_id("msg"), "role": "assistant", "content": []}
        self._open = item
        self._items.append(item)
        events = [
            self._event(
                "response.output_item.added",
                output_index=len(self._items) - 1,
                item=_copy(item),
            )
        ]
        if kind != "function_call":
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
            if kind == "message":
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item["content"].append(part)
            events.append(
                self._event(
                    "response.content_part.added",
                    **self._at(item),
                    content_index=0,
                    part=dict(part),
                )
            )
        return events

    def _close(self, status: str) -> list[dict[str, Any]]:
        """Closes the open item, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return []
        item["status"] = status
        at = self._at(item)
        if item["type"] == "function_call":
            events = [
                self._event(
                    "response.function_call_arguments.done",
                    **at,
                    name=item["name"],
                    arguments=item["arguments"],
                )
            ]
        else:
            part = dict(item["content"][0])
            kind = _text_kind(item)
            more = {"logprobs": []} if kind == "output_text" else {}
            events = [
                self._event(
                    f"response.{kind}.done", **at, content_index=0, text=part["text"], **more
                ),
                self._event("response.content_part.done", **at, content_index=0, part=part),
            ]
        done = {"output_index": at["output_index"], "item": _copy(item)}
        return [*events, self._event("response.output_item.done", **done)]

    def _at(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self._items) - 1}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}

    def _status(self) -> str:
        return "completed" if self._finish == "stop" else "incomplete"

    def _response(self, status: str) -> dict[str, Any]:
        usage = None
        if status != "in_progress":
            usage = {
                "input_tokens": self._prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self._new_tokens,
                "output_tokens_details": {"reasoning_tokens": self._thought_tokens},
                "total_tokens": self._prompt_tokens + self._new_tokens,
            }
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            **self._head,
            "status": status,
            "incomplete_details": reason,
            "output": [_copy(item) for item in self._items],
            "usage": usage,
        }


def _text_kind(item: dict[str, Any]) -> str:
    return "reasoning_text" if item["type"] == "reasoning" else "output_text"


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    if "content" not in item:
        return dict(item)
    return {**item, "content": [dict(part) for part in item["content"]]}


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
