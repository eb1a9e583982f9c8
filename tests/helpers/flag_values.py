"""All flags of a program with their fields, and values that break careless ones."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

HARD_VALUES = (
    "-1",
    "0",
    "1",
    "0.5",
    "nan",
    "inf",
    "-inf",
    "",
    "none",
    "1e30",
    "1e300",
    "1e-300",
    "1" + "0" * 30,
    "9" * 5000,
    "true",
    "wrong",
    ",",
    "1,,2",
    "-1,nan",
)


class Flag(NamedTuple):
    name: str  # such as "train.num_steps"
    owner: type  # the dataclass that declares the field
    field: str
    annotation: Any


def flags_of(config, prefix: str = "") -> Iterator[Flag]:
    """Yields every flag of a config, in order."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flags_of(value, f"{prefix}{field.name}.")
        else:
            yield Flag(prefix + field.name, type(config), field.name, hints[field.name])


def meaning(text: str, annotation) -> Any:
    """What a text says, for a flag of this type that accepts it."""
    inner = [each for each in typing.get_args(annotation) if each is not type(None)]
    if type(None) in typing.get_args(annotation):
        return None if text == "none" else meaning(text, inner[0])
    origin = typing.get_origin(annotation)
    if origin is tuple:
        items = text.split(",") if text else []
        return [meaning(item.strip(), inner[0]) for item in items]
    if annotation is bool:
        return {"true": True, "1": True, "0": False}[text]
    return annotation(text) if annotation in (int, float) else text
