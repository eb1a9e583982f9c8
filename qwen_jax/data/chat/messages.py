"""Messages of a conversation, typed, in the forms that people have.

A message is OpenAI's ("role" and "content", "tool_calls", "tool_call_id"), ShareGPT's ("from" and
"value", with a role of its own for a call), or a mix. docs/guides/chat_data.md lists the keys.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from qwen_jax.data.chat.rows import Fields, Skipped, cannot_read
from qwen_jax.errors import DataError
from qwen_jax.tokenizer.dialects.calls import ToolCall

_ROLES = {  # role names of the formats, in lower case -> ours
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "ai", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "function_response"), "tool"),
}
_CALL_ROLES = ("function_call", "tool_call")  # their text is a call as JSON
_REASONING = ("reasoning_content", "reasoning", "thinking")
MARKS = ("weight", "train", "trainable", "loss_mask", "loss", "loss_weight", "loss_scale")
TURN_MARKS = (*MARKS, "training")
# Marks that would change which tokens are trained, of parts of a turn or of unknown sense.
UNCLEAR_MARKS = ("mask", "masked", "ignore", "ignore_loss", "train_detail")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


@dataclasses.dataclass(frozen=True)
class ToolResult:
    """Which call a message with the role "tool" answers; None if the row does not say."""

    call_id: str | None = None
    name: str | None = None  # of the tool


@dataclasses.dataclass(frozen=True)
class Message:
    """One message. Two are equal if the model sees the same."""

    role: str  # system, user, assistant or tool
    text: str
    calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None  # the assistant's thoughts before the text
    result: ToolResult | None = dataclasses.field(default=None, compare=False)
    # Whether the row says that the message is trained on; None: it does not say.
    trained: bool | None = dataclasses.field(default=None, compare=False)


def read_messages(items: Any, fields: Fields, name: str, role: str | None = None) -> list[Message]:
    """Returns the messages of a list of objects.

    A call in a turn of its own joins the assistant's text before it, and results are put in the
    order of their calls.

    Args:
      name: the key of the list, for the names of keys that are not read.
      role: the role of a message that has none; None: a role is required.

    Raises:
      Skipped: a message cannot be read, or a result answers none of the calls before it.
      DataError: a mark is neither true nor false.
    """
    if isinstance(items, str):
        items = _parsed(items, "[")
    if not isinstance(items, list):
        raise Skipped("turns are not a list")
    messages = []
    for item in items:
        if not isinstance(item, dict):
            raise Skipped("a turn is not an object")
        inner = fields.inner(name, item)
        message, own_turn = _read(inner, role)
        previous = messages[-1] if messages else None
        if own_turn and previous and previous.role == "assistant":
            if previous.trained != message.trained:
                raise Skipped("a call is marked in another way than the text before it")
            calls = previous.calls + message.calls
            text = "\n".join(filter(None, (previous.text, message.text)))
            thoughts = [m.reasoning for m in (previous, message) if m.reasoning is not None]
            messages[-1] = dataclasses.replace(
                previous, text=text, calls=calls, reasoning="\n".join(thoughts) or None
            )
        else:
            messages.append(message)
    return _ordered_results(messages)


def read_text(value: Any, fields: Fields, name: str) -> str:
    """Returns a text that may be given as content parts.

    Raises:
      Skipped: it is neither text nor parts of text.
    """
    if isinstance(value, str):
        return value
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list):
        raise Skipped("a turn without text")
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise Skipped("a content part is not an object")
        inner = fields.inner(name, part)
        kind = str(inner.take("type") or inner.first(("text",)))
        if kind in ("image", "image_url", "input_image"):
            raise cannot_read("images")
        if kind not in _TEXT_PARTS:
            raise Skipped(f"a content part of type {kind[:20]!r}")
        text = inner.take(_TEXT_PARTS[kind])
        if not isinstance(text, str):
            raise Skipped("a turn without text")
        texts.append(text)
    return "".join(texts)


def read_mark(fields: Fields) -> bool | None:
    """Returns whether an object is marked to be trained on; None if it has no mark.

    Raises:
      DataError: a mark is neither 0, 1, true nor false, or two of them differ.
      Skipped: a mark does not say clearly whether the full object is trained on.
    """
    marks = {}
    for key in UNCLEAR_MARKS:
        if fields.untaken([key]) and (key == "mask" or fields.take(key)):
            raise Skipped(f"a mark of what is trained that is not supported ({key})")
    for key in TURN_MARKS:
        value = fields.take(key)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise DataError(
                f"{key} is {str(value)[:40]!r}.",
                fields.where,
                f"set {key} to 1 or true (trained), or to 0 or false; partial weights are not "
                "supported.",
            )
        marks[key] = bool(value)
    if len(set(marks.values())) > 1:
        raise DataError(
            f"{' and '.join(marks)} differ.", fields.where, "keep one of them, or make them equal."
        )
    return next(iter(marks.values()), None)


def _read(fields: Fields, default_role: str | None) -> tuple[Message, bool]:
    """Returns a message, and whether it is a call in a turn of its own."""
    name = _one(fields, ("role", "from"), "roles") or default_role
    role = _ROLES.get(str(name).lower())
    if role is None:
        raise Skipped(f"unknown role {str(name)[:20]!r}")
    calls = _calls(fields)
    text = _one(fields, ("content", "value", "text"), "texts")
    refusal = fields.take("refusal")
    if text in (None, "") and isinstance(refusal, str):
        text = refusal
    elif refusal:
        raise Skipped("a refusal next to a text")
    own_turn = str(name).lower() in _CALL_ROLES
    if own_turn and isinstance(text, (dict, list)):
        text = json.dumps(text, ensure_ascii=False)
    if own_turn and isinstance(text, str):
        found = _parsed(text, "{[")
        try:
            calls += tuple(_call(call, fields) for call in _as_list(found)) if found else ()
            text = "" if found else text
        except Skipped:
            pass  # not a call that can be read, so it stays text
    if text is None and calls:
        text = ""
    text = _json_text(text) if role == "tool" else text
    text = read_text(text, fields, "content")
    if calls and role != "assistant":
        raise Skipped(f"a call of a tool by the {role}")
    reasoning = _one(fields, _REASONING, "thoughts")
    reasoning = None if reasoning in ("", [], {}) else reasoning
    if reasoning is not None and (role != "assistant" or not isinstance(reasoning, str)):
        raise Skipped("reasoning that is not text, or not the assistant's")
    mark = read_mark(fields)
    if mark and role != "assistant":
        raise Skipped(f"a {role} turn is marked to be trained on")
    return Message(role, text, calls, reasoning, _result(fields, role), mark), own_turn


def _one(fields: Fields, keys: Sequence[str], what: str) -> Any:
    """Returns the value of the one key that is present.

    Raises:
      Skipped: two keys have different values.
    """
    values = [value for key in keys if (value := fields.take(key)) is not None]
    if any(value != values[0] for value in values):
        raise Skipped(f"a turn has two {what}")
    return values[0] if values else None


def _calls(fields: Fields) -> tuple[ToolCall, ...]:
    calls, single = fields.take("tool_calls"), fields.take("function_call")
    if isinstance(calls, str):
        calls = _parsed(calls, "{[")
        if calls is None:
            raise Skipped("tool_calls are not a list of calls")
    found = [_call(call, fields) for call in _as_list(calls or [])]
    if single:
        found.append(_call(single, fields))
    return tuple(found)


def _call(call: Any, fields: Fields) -> ToolCall:
    """Reads {"id", "type", "function": {"name", "arguments"}}, or {"name", "arguments"}."""
    if not isinstance(call, dict):
        raise Skipped("a call of a tool is not an object")
    outer = fields.inner("tool_calls", call)
    kind, identity = outer.take("type"), outer.take("id")
    if kind not in (None, "function"):
        raise Skipped(f"a call of type {str(kind)[:20]!r}")
    function = outer.take("function")
    inner = outer.inner("function", function) if isinstance(function, dict) else outer
    key = inner.first(("arguments", "parameters", "input"))
    name, arguments = inner.take("name"), inner.take(key) if key else {}
    if not isinstance(name, str) or not name.strip():
        raise Skipped("a call of a tool without its name")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name, arguments, None if identity is None else str(identity))


def _result(fields: Fields, role: str) -> ToolResult | None:
    if role != "tool":
        if fields.take("tool_call_id") is not None:
            raise Skipped(f"a tool_call_id in a {role} turn")
        return None
    identity, name = fields.take("tool_call_id"), fields.take("name")
    return ToolResult(
        None if identity is None else str(identity), None if name is None else str(name)
    )


def _ordered_results(messages: list[Message]) -> list[Message]:
    """Puts the results after each message in the order of its calls: ids are not rendered.

    Raises:
      Skipped: a result is of none of the calls, two are of one, or some calls have none.
    """
    ordered, index = [], 0
    while index < len(messages):
        ordered.append(messages[index])
        calls = messages[index].calls
        index += 1
        results = []
        while index < len(messages) and messages[index].role == "tool":
            results.append(messages[index])
            index += 1
        ordered += _in_order_of(calls, results) if calls else results
    return ordered


def _in_order_of(calls: Sequence[ToolCall], results: list[Message]) -> list[Message]:
    answers = [message.result or ToolResult() for message in results]
    names = {call.name for call in calls}
    if any(answer.name is not None and answer.name not in names for answer in answers):
        raise Skipped("the result of a tool that was not called")
    if results and len(results) < len(calls):
        raise Skipped("a call without a result")
    order = [call.id for call in calls]
    if None in order or any(answer.call_id is None for answer in answers):
        return results
    if any(answer.call_id not in order for answer in answers):
        raise Skipped("the result of a call that was not made")
    if len(set(order)) < len(order) or len({a.call_id for a in answers}) < len(answers):
        raise Skipped("two calls or results with one id")
    return sorted(results, key=lambda message: order.index((message.result or answers[0]).call_id))


def _json_text(value: Any) -> Any:
    """Returns the output of a tool as JSON, unless it is text or content parts."""
    parts = value if isinstance(value, list) else [value]
    is_parts = parts and all(isinstance(part, dict) and "type" in part for part in parts)
    if value is None or isinstance(value, str) or is_parts:
        return value
    return json.dumps(value, ensure_ascii=False)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parsed(text: str, starts: str) -> Any:
    """Returns the JSON of a text that starts with one of the characters; None if it is none."""
    if not text.lstrip()[:1] or text.lstrip()[0] not in starts:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
