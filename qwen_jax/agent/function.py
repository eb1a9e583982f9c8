"""`@tool`: a tool from a Python function; its signature and docstring become the JSON schema."""

import collections.abc
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from qwen_jax.agent.tool import Limits, Result, Tool
from qwen_jax.errors import ConfigError

_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Example|Examples):\s*$")
_ARGUMENT = re.compile(r"^(\*{0,2}\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    description_zh: str = "",
    concurrent: bool = False,
) -> Any:
    """Makes a tool of a function.

    The docstring is the description: its first paragraph, and the lines of `Args:` for the
    parameters. A parameter of type Limits receives the limits of the call and is not shown to the
    model. What the function returns is shown as text: a string as it is, other values as JSON or by
    str. What it raises becomes an observation.

    Args:
      name: of the tool; None: that of the function.
      description_zh, concurrent: as in Tool.

    Raises:
      ConfigError: a parameter has no type, or one that JSON cannot express; the error names it. Or
        there is no docstring.

    Example:
      >>> @tool
      ... def add(a: int, b: int = 1) -> int:
      ...     "Adds two numbers."
      ...     return a + b
      >>> add.parameters["required"]
      ['a']
    """
    if function is None:
        return lambda inner: tool(
            inner, name=name, description_zh=description_zh, concurrent=concurrent
        )
    found = name or function.__name__
    description, of_arguments = _read_docstring(inspect.getdoc(function) or "")
    if not description:
        raise ConfigError(
            f"the function {found} has no docstring, so the model would know nothing about it.",
            f"@tool {found}",
            "say in a docstring what it does.",
        )
    hints = typing.get_type_hints(function, include_extras=True)
    properties, required, enums, limits = {}, [], {}, None
    for each in inspect.signature(function).parameters.values():
        where = f"@tool {found}({each.name})"
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise ConfigError(
                f"the parameter {each.name} has no name that a call could use.",
                where,
                "use parameters that can be passed by name.",
            )
        if each.name not in hints:
            raise ConfigError(
                f"the parameter {each.name} has no type.", where, f"write {each.name}: str, say."
            )
        if hints[each.name] is Limits:
            limits = each.name
            continue
        properties[each.name] = schema_of(hints[each.name], where)
        enums[each.name] = hints[each.name]
        if each.name in of_arguments:
            properties[each.name]["description"] = of_arguments[each.name]
        if each.default is each.empty:
            required.append(each.name)
        elif isinstance(each.default, str | bool | int | float):
            properties[each.name]["default"] = each.default

    def run(arguments: dict[str, Any], spent: Limits) -> Result | str:
        values = {key: _value(value, enums[key]) for key, value in arguments.items()}
        if limits is not None:
            values[limits] = spent
        return as_result(function(**values))

    schema = {"type": "object", "properties": properties, "required": required}
    return Tool(
        found,
        description,
        run,
        {**schema, "additionalProperties": False},
        description_zh,
        concurrent=concurrent,
    )


def as_result(value: Any) -> Result | str:
    """Returns what a function returned as text for the model."""

    if isinstance(value, Result | str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def schema_of(hint: Any, where: str) -> dict[str, Any]:
    """Returns the JSON schema of a type.

    Args:
      where: the parameter, for errors.

    Raises:
      ConfigError: JSON cannot express the type.
    """
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        described = [text for text in inner[1:] if isinstance(text, str)]
        schema = schema_of(inner[0], where)
        return {**schema, "description": described[0]} if described else schema
    if origin is typing.Literal and all(isinstance(one, str | int | bool) for one in inner):
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return _union([schema_of(one, where) for one in inner])
    if origin in (list, collections.abc.Sequence) and len(inner) == 1 or hint is list:
        return {"type": "array", **({"items": schema_of(inner[0], where)} if inner else {})}
    if hint is dict or origin in (dict, collections.abc.Mapping) and inner[0] is str:
        rest = {"additionalProperties": schema_of(inner[1], where)} if inner else {}
        return {"type": "object", **rest}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        values = [one.value for one in hint]
        if all(isinstance(value, str | int) for value in values):
            return {"enum": values}
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint)
        properties = {name: schema_of(one, f"{where}.{name}") for name, one in hints.items()}
        required = sorted(getattr(hint, "__required_keys__", ()))
        return {"type": "object", "properties": properties, "required": required}
    shown = getattr(hint, "__name__", None) if isinstance(hint, type) else None
    raise ConfigError(
        f"a tool cannot take the type {shown or hint}: JSON has no such value.",
        where,
        "use str, int, float, bool, None, Literal, an Enum, a TypedDict, list[...] or "
        "dict[str, ...] of these.",
    )


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    if all(set(one) == {"type"} for one in schemas):
        return {"type": [one["type"] for one in schemas]}
    return {"anyOf": schemas}


def _value(value: Any, hint: Any) -> Any:
    """Returns the member of an Enum for its value, and a float for an integer in JSON."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _value(value, inner[0])
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if hint is float and isinstance(value, int):
        return float(value)
    if hint is int and isinstance(value, float):  # 3.0 is an integer of JSON
        return int(value)
    if isinstance(value, list) and inner and origin is not typing.Literal:
        return [_value(one, inner[0]) for one in value] if origin is list else value
    if origin in (typing.Union, types.UnionType) and value is not None:
        members = [one for one in inner if one is not type(None)]
        return _value(value, members[0]) if len(members) == 1 else value
    return value


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Returns the first paragraph, and the lines of the parameters."""
    paragraph, found, name, inside, base = [], {}, None, "", 0
    for line in text.splitlines():
        if section := _SECTION.match(line):
            inside, name = section[1], None
            continue
        if not inside:
            paragraph.append(line)
            continue
        if inside not in ("Args", "Arguments", "Parameters") or not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if (match := _ARGUMENT.match(line.strip())) and (name is None or indent <= base):
            name, base = match[1].lstrip("*"), indent
            found[name] = match[2]
        elif name is not None:
            found[name] = f"{found[name]} {line.strip()}".strip()
    first = "\n".join(paragraph).strip().split("\n\n")[0]
    return " ".join(first.split()), found
