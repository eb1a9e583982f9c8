"""The tools of a request: their definitions, and whether the model may or must call them."""

import re
from typing import Any, NamedTuple

from qwen_jax.serve.api.fields import Fields, short
from qwen_jax.serve.errors import ApiError

MAX_TOOLS = 128  # OpenAI's limit
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FUNCTION = ("name", "description", "parameters", "strict")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_FIX = 'pass {"type": "function", "function": {"name": ..., "parameters": {...}}}.'


class ToolUse(NamedTuple):
    """What a request says of tools.

    Attributes:
      definitions: as in the request, for the chat template; empty with choice "none".
      choice: "none", "auto" or "required".
      names: the tools that may be called: all, or the one that tool_choice names.
      parallel: whether one answer may have several calls.
    """

    definitions: tuple[dict[str, Any], ...] = ()
    choice: str = "none"
    names: tuple[str, ...] = ()
    parallel: bool = True

    def parameters(self, name: str) -> dict[str, Any]:
        """Returns the schema of a tool's arguments."""
        (function,) = (
            one["function"] for one in self.definitions if one["function"]["name"] == name
        )
        return function.get("parameters") or _NO_PARAMETERS


def take_tools(fields: Fields) -> ToolUse:
    """Removes tools, tool_choice and parallel_tool_calls from a request, and returns them.

    Raises:
      ApiError: one of them is malformed, or contradicts another; `where` is the parameter.
    """
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if fields.take(old) not in (None, [], "none", "auto"):
            raise ApiError(
                f"{old} is the former form of {new}, which is not supported.",
                old,
                f"use {new}.",
                code="unsupported_parameter",
            )
    definitions = _definitions(fields.take("tools", []))
    choice = fields.take("tool_choice")
    parallel = fields.flag("parallel_tool_calls", True)
    names = tuple(one["function"]["name"] for one in definitions)
    if not definitions:
        if choice not in (None, "none", "auto"):
            raise ApiError(
                f"tool_choice={short(choice)} needs tools.",
                "tool_choice",
                "pass tools, or omit it.",
            )
        return ToolUse()
    kind = "auto" if choice is None else choice
    if isinstance(choice, dict):
        names, kind = (_chosen(choice, names),), "required"
        parallel = False  # one call of this function, as in OpenAI's API
    elif kind not in ("none", "auto", "required"):
        raise ApiError(
            f"tool_choice={short(choice)} is not none, auto, required or a function.",
            "tool_choice",
            'use one of these, or {"type": "function", "function": {"name": ...}}.',
        )
    if kind == "none":  # a model that does not see tools does not call them
        return ToolUse()
    return ToolUse(tuple(definitions), kind, names, parallel)


def _chosen(choice: dict[str, Any], names: tuple[str, ...]) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    if choice.get("type") != "function" or not isinstance(name, str):
        raise ApiError(
            f"tool_choice={short(choice)} does not choose a function.",
            "tool_choice",
            'pass {"type": "function", "function": {"name": ...}}.',
        )
    if name not in names:
        raise ApiError(
            f"tool_choice names {short(name)}, which is not one of tools.",
            "tool_choice",
            f"choose one of {', '.join(names)[:200]}.",
        )
    return name


def _definitions(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise ApiError(f"tools={short(tools)} is not a list.", "tools", f"pass a list; {_FIX}")
    if len(tools) > MAX_TOOLS:
        raise ApiError(f"there are {len(tools)} tools.", "tools", f"pass at most {MAX_TOOLS}.")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        kind = tool.get("type") if isinstance(tool, dict) else tool
        if kind != "function":
            raise ApiError(
                f"a tool of type {short(kind)} is not supported.",
                f"{where}.type" if isinstance(tool, dict) else where,
                _FIX,
            )
        name = check_function(tool.get("function"), f"{where}.function")
        if name in names:
            raise ApiError(f"two tools have the name {name}.", where, "use unique names.")
        names.add(name)
    return tools


def check_function(function: Any, where: str) -> str:
    """Returns the name of a function's definition. Raises ApiError, which names its field."""
    if not isinstance(function, dict):
        raise ApiError(f"{short(function)} does not define a function.", where, _FIX)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ApiError(
            f"name={short(name)} is not a name of a function.",
            f"{where}.name",
            "use 1 to 64 letters, digits, - and _.",
        )
    for key, kind in (("description", str), ("parameters", dict), ("strict", bool)):
        value = function.get(key)
        if value is not None and not isinstance(value, kind):
            raise ApiError(
                f"{key}={short(value)} is not a {kind.__name__}.",
                f"{where}.{key}",
                "see OpenAI's definition of a function.",
            )
    if unknown := function.keys() - set(_FUNCTION):
        key = str(min(unknown))
        raise ApiError(
            f"unknown field {short(key)}.",
            f"{where}.{key[:60]}",
            "omit it.",
            code="unknown_parameter",
        )
    kind = (function.get("parameters") or _NO_PARAMETERS).get("type", "object")
    if kind != "object":
        raise ApiError(
            f"arguments of type {short(kind)} are not an object.",
            f"{where}.parameters.type",
            'use {"type": "object", "properties": {...}}.',
        )
    return name
