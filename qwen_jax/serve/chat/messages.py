"""The messages of a conversation, as OpenAI's API has them, for a chat template.

Results of tools are matched with calls by id, and put in the order of the calls: templates write no
ids, so the order is what a model sees.
"""

from typing import Any

from qwen_jax.serve.api.fields import Limits, short
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer.dialects.calls import Parsed, ToolCall, assistant_message

ROLES = ("system", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "reasoning")
_FIELDS = {"assistant": ("tool_calls", *_REASONING), "tool": ("tool_call_id", "name")}


def read_messages(messages: Any, limits: Limits) -> list[dict[str, Any]]:
    """Returns the messages of a request for a chat template: strings, and calls with objects.

    Raises:
      ApiError: a message is malformed, or results of tools do not answer the calls before them.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError(
            "messages is not a non-empty list.",
            "messages",
            'pass [{"role": "user", "content": "..."}].',
        )
    if len(messages) > limits.context:
        raise ApiError(
            f"the context is {limits.context} tokens, but the prompt has {len(messages):,} "
            "messages.",
            "messages",
            "shorten the prompt.",
            code="context_length_exceeded",
        )
    found: list[dict[str, Any]] = []
    pending: dict[str, dict[str, Any] | None] = {}  # id of a call -> its result
    asked = ""  # where the calls are
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        identity, plain, calls = _message(message, where)
        if plain["role"] == "tool":
            if identity not in pending or pending[identity] is not None:
                raise ApiError(
                    f"tool_call_id={short(identity)} is not a call of the assistant's message "
                    "before, or has a result already.",
                    f"{where}.tool_call_id",
                    "send the result of each call once, after the message with the call.",
                )
            pending[identity] = plain
        else:
            found += _results(pending, asked)
            found.append(plain)
            pending, asked = {}, where
            pending.update({one: None for one in calls})
            if len(pending) < len(calls):
                raise ApiError("two calls have one id.", f"{where}.tool_calls", "use unique ids.")
    return [*found, *_results(pending, asked)]


def _results(pending: dict[str, dict[str, Any] | None], asked: str) -> list[dict[str, Any]]:
    """Returns the results of calls, in the order of the calls."""
    missing = [identity for identity, result in pending.items() if result is None]
    if missing:
        raise ApiError(
            f"the call {short(missing[0])} has no result.",
            f"{asked}.tool_calls",
            "send a message with the role tool for each tool_call_id.",
        )
    return [result for result in pending.values() if result is not None]


def _message(message: Any, where: str) -> tuple[Any, dict[str, Any], list[str]]:
    """Returns the id of the call that is answered, the message, and the ids of its calls."""
    if not isinstance(message, dict):
        raise ApiError(
            f"{short(message)} is not a message.", where, 'pass {"role": ..., "content": ...}.'
        )
    # Clients echo responses as they received them, including empty fields.
    left = {name: value for name, value in message.items() if value not in (None, [], {})}
    role, content = left.pop("role", None), left.pop("content", None)
    role = "system" if role == "developer" else role  # OpenAI's newer name
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(f"role {short(role)} is not one of {', '.join(ROLES)}.", f"{where}.role")
    own = {name: left.pop(name) for name in _FIELDS.get(role, ()) if name in left}
    if left:
        name = next(iter(left))
        raise ApiError(
            f"the message field {short(name)} is not supported in a message of role {role}.",
            f"{where}.{name[:60]}",
            "omit it.",
            code="unsupported_parameter",
        )
    text = _text(content, where, may_be_absent="tool_calls" in own)
    if role != "assistant":
        identity = own.get("tool_call_id")
        if role == "tool" and not isinstance(identity, str):
            raise ApiError(
                f"tool_call_id={short(identity)} is not a string.",
                f"{where}.tool_call_id",
                "pass the id of the call that this is the result of.",
            )
        return identity, {"role": role, "content": text}, []
    calls, ids = _calls(own.get("tool_calls", []), f"{where}.tool_calls")
    plain = assistant_message(Parsed(text, tuple(calls)))
    for name in _REASONING:
        if name in own:
            if not isinstance(own[name], str):
                raise ApiError(f"{name} {short(own[name])} is not text.", f"{where}.{name}")
            plain["reasoning_content"] = own[name]
    return None, plain, ids


def _calls(calls: Any, where: str) -> tuple[list[ToolCall], list[str]]:
    if not isinstance(calls, list):
        raise ApiError(f"{short(calls)} is not a list of calls.", where, "pass a list.")
    found: list[ToolCall] = []
    ids: list[str] = []
    for index, call in enumerate(calls):
        one = f"{where}[{index}]"
        if not isinstance(call, dict) or call.get("type", "function") != "function":
            raise ApiError(
                f"{short(call)} is not the call of a function.",
                one,
                'pass {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
                ".",
            )
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        for name, value in (("id", call.get("id")), *function.items()):
            if name in ("id", "name", "arguments") and not isinstance(value, str):
                field = f"{one}.id" if name == "id" else f"{one}.function.{name}"
                raise ApiError(f"{short(value)} is not a string.", field, "pass a string.")
        if not {"name", "arguments"} <= function.keys():
            raise ApiError(
                "the call has no name or no arguments.", f"{one}.function", "pass both as strings."
            )
        found.append(ToolCall(function["name"], function["arguments"]))
        ids.append(call["id"])
    return found, ids


def _text(content: Any, where: str, *, may_be_absent: bool) -> str:
    if isinstance(content, list):
        return "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if content is None and may_be_absent:
        return ""
    if not isinstance(content, str):
        raise ApiError(f"content {short(content)} is not text.", f"{where}.content")
    return content


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else part
    raise ApiError(
        f"a content part of type {short(kind)} is not supported.",
        where,
        'pass {"type": "text", "text": ...}; this model accepts only text.',
    )
