"""The input items of /v1/responses as the messages of a chat.

Items of the assistant that follow each other (thoughts, text, calls) are one message.
"""

from typing import Any, NamedTuple

from qwen_jax.serve.api.fields import short
from qwen_jax.serve.errors import ApiError

_FIELDS = {
    "message": ("type", "role", "content", "id", "status", "phase"),
    "function_call": ("type", "call_id", "name", "arguments", "id", "status"),
    "function_call_output": ("type", "call_id", "output", "id", "status"),
    "reasoning": ("type", "id", "status", "content", "summary", "encrypted_content"),
}
_TEXTS = ("input_text", "output_text", "text")


class Conversation(NamedTuple):
    """Messages as chat completions have them, and the item that each comes from."""

    messages: list[dict[str, Any]]
    origins: list[str]


def read_items(items: Any, instructions: Any) -> Conversation:
    """Returns the conversation of `input` after `instructions`.

    Raises:
      ApiError: an item is malformed, or of a type that needs what a server without state lacks.
    """
    builder = _Builder()
    if instructions is not None:
        if not isinstance(instructions, str):
            raise ApiError(f"instructions={short(instructions)} is not text.", "instructions")
        builder.add({"role": "system", "content": instructions}, "instructions")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise ApiError(
            f"input={short(items)} is neither text nor a non-empty list of items.",
            "input",
            'pass a string, or [{"role": "user", "content": "..."}].',
        )
    for index, item in enumerate(items):
        builder.item(item, f"input[{index}]")
    return builder.finish()


class _Builder:
    def __init__(self):
        self._messages: list[dict[str, Any]] = []
        self._origins: list[str] = []
        self._open: dict[str, Any] | None = None  # a message of the assistant that may go on

    def add(self, message: dict[str, Any], where: str) -> None:
        self._open = None
        self._messages.append(message)
        self._origins.append(where)

    def finish(self) -> Conversation:
        return Conversation(self._messages, self._origins)

    def item(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise ApiError(f"{short(item)} is not an item.", where, "pass an object.")
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise ApiError(
                f"an item of type {short(kind)} is not supported.",
                f"{where}.type",
                f"use {', '.join(_FIELDS)}; this server keeps no earlier responses.",
                code="unsupported_parameter",
            )
        unknown = [key for key in item if key not in _FIELDS[kind] and item[key] is not None]
        if unknown:
            raise ApiError(
                f"unknown field {short(unknown[0])} of an item of type {kind}.",
                f"{where}.{str(unknown[0])[:60]}",
                "omit it.",
                code="unknown_parameter",
            )
        getattr(self, f"_{kind}")(item, where)

    def _message(self, item: dict[str, Any], where: str) -> None:
        text = _text(item.get("content"), f"{where}.content")
        if item.get("role") != "assistant":
            self.add({"role": item.get("role"), "content": text}, where)
            return
        message = self._assistant(where, content=True)
        message["content"] = text

    def _function_call(self, item: dict[str, Any], where: str) -> None:
        for key in ("call_id", "name", "arguments"):
            if not isinstance(item.get(key), str):
                raise ApiError(f"{key}={short(item.get(key))} is not a string.", f"{where}.{key}")
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        self._assistant(where).setdefault("tool_calls", []).append(call)

    def _function_call_output(self, item: dict[str, Any], where: str) -> None:
        text = _text(item.get("output"), f"{where}.output")
        message = {"role": "tool", "tool_call_id": item.get("call_id"), "content": text}
        self.add(message, where)

    def _reasoning(self, item: dict[str, Any], where: str) -> None:
        parts = item.get("content") or []
        texts: list[str] = []
        for part in parts if isinstance(parts, list) else [parts]:
            text = part.get("text") if isinstance(part, dict) else part
            if not isinstance(part, dict) or not isinstance(text, str):
                raise ApiError(
                    f"the content {short(parts)} is not a list of texts.", f"{where}.content"
                )
            texts.append(text)
        if not texts and item.get("encrypted_content"):
            raise ApiError(
                "encrypted thoughts are not supported.",
                f"{where}.encrypted_content",
                "send back the items of this server's responses.",
                code="unsupported_parameter",
            )
        if texts:
            self.add({"role": "assistant", "reasoning_content": "".join(texts)}, where)
            self._open = self._messages[-1]

    def _assistant(self, where: str, *, content: bool = False) -> dict[str, Any]:
        """Returns the open message of the assistant, or a new one.

        Args:
          content: whether it gets text, which comes before calls and only once.
        """
        message = self._open
        if message is None or content and ("content" in message or "tool_calls" in message):
            message = {"role": "assistant"}
            self.add(message, where)
        self._open = message
        return message


def _text(content: Any, where: str) -> str:
    """Returns the text of a string, or of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(f"{short(content)} is not text.", where, "pass a string.")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind not in _TEXTS or not isinstance(part.get("text"), str):
            raise ApiError(
                f"a part of type {short(kind)} is not supported.",
                f"{where}[{index}]",
                'pass {"type": "input_text", "text": ...}; this model accepts only text.',
            )
        texts.append(part["text"])
    return "".join(texts)
