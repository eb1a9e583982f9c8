"""JSON schemas of tools: what is wrong with the arguments of a call, in words for the model.

Checked are type, enum, const, properties, required, additionalProperties, items, prefixItems,
length, size and range limits, pattern, multipleOf, anyOf, oneOf, allOf and local $ref. Other
keywords are descriptions to the model; the tool checks what they say.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_DEPTH = 32
_TYPES = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        isinstance(value, int)
        and not isinstance(value, bool)
        or isinstance(value, float)
        and value.is_integer()
    ),
}


def problems(value: Any, schema: Mapping[str, Any], limit: int = 5) -> list[str]:
    """Returns what is wrong with a JSON value, at most `limit` sentences; []: nothing."""
    found = []
    for problem in _problems(value, schema, "arguments", schema, 0):
        found.append(problem)
        if len(found) == limit:
            break
    return found


def _problems(
    value: Any, schema: Any, where: str, root: Mapping[str, Any], depth: int
) -> Iterator[str]:
    if schema is True or schema == {} or depth > _DEPTH:
        return
    if not isinstance(schema, Mapping):
        yield f"{where} is not allowed"
        return
    if isinstance(reference := schema.get("$ref"), str):
        yield from _problems(value, _resolved(reference, root), where, root, depth + 1)
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if kinds and not any(_TYPES.get(kind, lambda _: True)(value) for kind in kinds):
        yield f"{where} must be {_a(' or '.join(kinds))}, not {_shown(value)}"
        return
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        yield f"{where} must be one of {_shown(schema['enum'], 200)}, not {_shown(value)}"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{where} must be {_shown(schema['const'])}, not {_shown(value)}"
    yield from _combined(value, schema, where, root, depth)
    if isinstance(value, dict):
        yield from _of_object(value, schema, where, root, depth)
    elif isinstance(value, list):
        yield from _of_array(value, schema, where, root, depth)
    elif isinstance(value, str):
        yield from _of_string(value, schema, where)
    elif _TYPES["number"](value):
        yield from _of_number(value, schema, where)


def _combined(value, schema, where, root, depth) -> Iterator[str]:
    for one in schema.get("allOf", ()):
        yield from _problems(value, one, where, root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if not (choices := schema.get(key)):
            continue
        failures = [list(_problems(value, one, where, root, depth + 1)) for one in choices]
        fitting = failures.count([])
        if not fitting:
            yield (
                min(failures, key=len)[0]
                if len(choices) == 1
                else (
                    f"{where} fits none of the allowed forms: "
                    + "; ".join(dict.fromkeys(failure[0] for failure in failures))
                )
            )
        elif key == "oneOf" and fitting > 1:
            yield f"{where} fits {fitting} of the allowed forms, and must fit exactly one"


def _of_object(value: dict, schema, where, root, depth) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where} has no {name!r}, which is required"
    rest = schema.get("additionalProperties", True)
    for name, one in value.items():
        if name in properties:
            yield from _problems(one, properties[name], f"{where}.{name}", root, depth + 1)
        elif rest is False:
            known = ", ".join(properties) or "none"
            yield f"{where} has an unknown key {_shown(name)}; known: {known}"
        else:
            yield from _problems(one, rest, f"{where}.{name}", root, depth + 1)
    yield from _size(len(value), schema, where, "Properties", "keys")


def _of_array(value: list, schema, where, root, depth) -> Iterator[str]:
    first = schema.get("prefixItems", ())
    for index, one in enumerate(value):
        inner = first[index] if index < len(first) else schema.get("items", True)
        yield from _problems(one, inner, f"{where}[{index}]", root, depth + 1)
    yield from _size(len(value), schema, where, "Items", "items")
    if schema.get("uniqueItems") is True:
        texts = [json.dumps(one, sort_keys=True) for one in value]
        if len(set(texts)) < len(texts):
            yield f"{where} has the same item twice"


def _of_string(value: str, schema, where) -> Iterator[str]:
    yield from _size(len(value), schema, where, "Length", "characters")
    if isinstance(pattern := schema.get("pattern"), str):
        try:
            matches = re.search(pattern, value[:10_000])
        except re.error:  # a pattern of another dialect: the tool checks it
            return
        if not matches:
            yield f"{where} does not match {pattern!r}"


def _of_number(value: int | float, schema, where) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is not a finite number"
        return
    for key, ok, word in (
        ("minimum", lambda limit: value >= limit, "at least"),
        ("maximum", lambda limit: value <= limit, "at most"),
        ("exclusiveMinimum", lambda limit: value > limit, "above"),
        ("exclusiveMaximum", lambda limit: value < limit, "below"),
    ):
        limit = schema.get(key)
        if _TYPES["number"](limit) and not ok(limit):
            yield f"{where} must be {word} {limit}, not {value}"
    step = schema.get("multipleOf")
    if step and not math.isclose(value / step, round(value / step), rel_tol=1e-9, abs_tol=1e-9):
        yield f"{where} must be a multiple of {step}, not {value}"


def _size(count: int, schema, where: str, suffix: str, unit: str) -> Iterator[str]:
    least, most = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if isinstance(least, int) and count < least:
        yield f"{where} has {count} {unit}, and needs at least {least}"
    if isinstance(most, int) and count > most:
        yield f"{where} has {count} {unit}, and may have at most {most}"


def _resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """Returns what a local $ref refers to; True, which allows everything, if that is not there."""
    if not reference.startswith("#"):
        return True
    found: Any = root
    for part in filter(None, reference[1:].split("/")):
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or part not in found:
            return True
        found = found[part]
    return found


def _same(value: Any, other: Any) -> bool:
    """Returns whether two JSON values are equal: true is not 1, and 1.0 is 1."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return value == other


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aio' else 'a'} {kind}"


def _shown(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[:limit]}..."
