"""The body of a request to /v1/responses: the part of OpenAI's API that needs no stored state.

openai-agents sends it by default. Nothing is stored, so previous_response_id, conversation and
store=true are refused; a client sends back the items of earlier turns.
"""

import dataclasses
import re
from typing import Any

from qwen_jax.serve.api.fields import Fields, Limits, short
from qwen_jax.serve.api.protocol import ApiRequest, read_conversation
from qwen_jax.serve.chat.formats import Schema, read_schema
from qwen_jax.serve.chat.messages import read_messages
from qwen_jax.serve.chat.tools import take_tools
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.responses.items import read_items
from qwen_jax.tokenizer.bpe import Tokenizer

# Parameter -> values that have no effect here; others are refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "truncation": ("disabled",),
    "reasoning": ({},),
    "max_tool_calls": (),
    "top_logprobs": (0,),
    "include": ([], ["reasoning.encrypted_content"]),  # thoughts are text here
}
_METADATA = ("prompt_cache_retention",)
_STATE = ("store", "previous_response_id", "conversation", "background")
_FUNCTION = ("type", "name", "description", "parameters", "strict")
# Names of chat completions in errors -> those of this API.
_NAMES = (
    (r"\bmax_completion_tokens\b", "max_output_tokens"),
    (r"\bmessages\b(?!\[)", "input"),
    (r"\.function\b", ""),
)


@dataclasses.dataclass(frozen=True)
class ResponsesRequest(ApiRequest):
    """A request to /v1/responses."""

    shown: dict[str, Any] = dataclasses.field(default_factory=dict)  # what its response repeats


def read_responses(body: dict[str, Any], tokenizer: Tokenizer, limits: Limits) -> ResponsesRequest:
    """Parses the body of a request to /v1/responses. Raises ApiError, which names the field."""
    origins: list[str] = []
    try:
        return _read(body, tokenizer, limits, origins)
    except ApiError as error:
        what, where, fix = error.what, error.where, error.fix
        for pattern, name in _NAMES:
            what, where, fix = (re.sub(pattern, name, text) for text in (what, where, fix))
        if (found := re.match(r"messages\[(\d+)\]", where)) and int(found[1]) < len(origins):
            where = origins[int(found[1])] + where[found.end() :].replace("tool_call_id", "call_id")
        raise ApiError(what, where, fix, status=error.status, code=error.code) from None


def _read(
    body: dict[str, Any], tokenizer: Tokenizer, limits: Limits, origins: list[str]
) -> ResponsesRequest:
    body = {name: value for name, value in body.items() if value is not None}
    shown = {
        name: body.get(name, default)
        for name, default in (
            ("instructions", None),
            ("metadata", {}),
            ("max_output_tokens", None),
            ("parallel_tool_calls", True),
            ("tool_choice", "auto"),
            ("tools", []),
            ("text", {"format": {"type": "text"}}),
        )
    }
    _check_neutral(body)
    schema = _schema(body.pop("text", {}))
    conversation = read_items(body.pop("input", None), body.pop("instructions", None))
    origins += conversation.origins
    if "tools" in body:
        body["tools"] = _tools(body["tools"])
    for name in ("max_tokens", "max_completion_tokens", "messages", "n", "logprobs"):
        if name in body:
            raise ApiError(
                f"{name} is a parameter of chat completions.",
                name,
                "omit it, or use max_output_tokens and input.",
                code="unknown_parameter",
            )
    if "max_output_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_output_tokens")
    fields = Fields(body, limits)
    tools = take_tools(fields)
    messages = read_messages(conversation.messages, limits)
    request = read_conversation(fields, messages, tools, schema, tokenizer)
    sampling = request.engine_requests[0].sampling
    shown |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    values = {one.name: getattr(request, one.name) for one in dataclasses.fields(ApiRequest)}
    return ResponsesRequest(**values, shown=shown)


def _check_neutral(body: dict[str, Any]) -> None:
    """Removes what has no effect; raises ApiError for what would have one."""
    for name in _METADATA:
        body.pop(name, None)
    for name, neutral in _NEUTRAL.items():
        if name in body and (value := body.pop(name)) not in neutral:
            state = name in _STATE
            raise ApiError(
                f"{name}={short(value)} is not supported"
                + (": this server stores no responses." if state else "."),
                name,
                "send the items of earlier turns as input." if state else "omit it.",
                code="unsupported_parameter",
            )


def _schema(text: Any) -> Schema | None:
    form = text.get("format", {"type": "text"}) if isinstance(text, dict) else None
    if not isinstance(form, dict) or text.keys() - {"format", "verbosity"}:
        raise ApiError(
            f"text={short(text)} is not supported.", "text", 'pass {"format": {"type": ...}}.'
        )
    if text.get("verbosity") not in (None, "medium"):
        raise ApiError(
            f"verbosity={short(text['verbosity'])} is not supported.", "text.verbosity", "omit it."
        )
    kind = form.get("type")
    if kind in ("text", "json_object") and set(form) == {"type"}:
        return None if kind == "text" else Schema({"type": "object"}, "text.format")
    if kind != "json_schema":
        raise ApiError(
            f"a format of type {short(kind)} is not supported.",
            "text.format.type",
            "use text, json_object or json_schema.",
        )
    return read_schema({k: v for k, v in form.items() if k != "type"}, "text.format")


def _tools(tools: Any) -> Any:
    """Returns tools as chat completions define them; what is malformed is left to take_tools."""
    if not isinstance(tools, list):
        return tools
    found = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            found.append(tool)
            continue
        if unknown := tool.keys() - set(_FUNCTION):
            key = str(min(unknown))
            raise ApiError(
                f"unknown field {short(key)} of a tool.",
                f"tools[{index}].{key[:60]}",
                "omit it.",
                code="unknown_parameter",
            )
        found.append({"type": "function", "function": {k: tool[k] for k in tool if k != "type"}})
    return found
