"""Types and ranges of settings: a field states its range once, and every construction checks it.

`option(default, help, Range(0, below=1))` states a range, and a dataclass that extends `Checked`
checks it. Without a range, integers fit in int32 and numbers in float32, as on the device.
"""

import dataclasses
import functools
import math
import numbers
import os
import struct
import types
import typing
from collections.abc import Mapping
from typing import Any

from qwen_jax.errors import ConfigError

_INT32_MAX = 2**31 - 1
_NON_EMPTY = "a non-empty string"
_FLOAT32_TINY = 2.0**-126  # smaller numbers may become 0 on the device


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers. str() describes it: "at least 0 and below 1".

    infinite: whether it includes infinity, without which it has only finite numbers.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False

    def __contains__(self, value) -> bool:
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.at_most is not None and value > self.at_most)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:,} to {self.at_most:,}"
        limits = ("at least", self.at_least), ("above", self.above)
        limits += ("at most", self.at_most), ("below", self.below)
        return " and ".join(f"{word} {limit:,}" for word, limit in limits if limit is not None)


ONE_OR_MORE = Range(1)
ZERO_OR_MORE = Range(0)
ABOVE_ZERO = Range(above=0)
FRACTION = Range(0, 1)
SEED = Range(0, 2**32 - 1)


def option(
    default: Any,
    help: str,
    limits: Range | None = None,
    *,
    alias: str | None = None,
    former_values: Mapping[str, str] | None = None,
    empty: bool = False,
    positional: bool = False,
    formerly: Any = dataclasses.MISSING,
    kind: str = "path",
) -> Any:
    """Declares a dataclass field together with the help text of its flag.

    Args:
      default: an immutable value; dataclasses.MISSING: the field is required.
      help: the field's line in --help.
      limits: the range of a number, or of each number of a list.
      alias: the field's former name. Flags and config.json files that use it still work, with a
        warning. For a field that moved from another section, the full flag: "--data.sources".
      former_values: former -> current spelling of each renamed choice; also accepted with a
        warning.
      empty: whether an empty string has a meaning. It always has where it is the default.
      positional: whether the field, a tuple, also takes the arguments that are not flags.
      formerly: the value of runs whose version did not have the field, if it is not `default`.
      kind: of a string: "path" (or a name: no URL), "stored" (a path, or an address such as
        gs://BUCKET/RUN), "url" (a path or a URL), "text" (anything).
    """
    metadata = {"help": help, "alias": alias, "former_values": former_values or {}}
    metadata |= {"limits": limits, "empty": empty, "positional": positional}
    metadata |= {"formerly": formerly, "kind": kind}
    return dataclasses.field(default=default, metadata=metadata)


class Checked:
    """Base of a config dataclass: construction checks the type and the range of each field.

    A subclass with its own __post_init__, for what relates fields to each other, calls this one
    first. `class TrainConfig(Checked, where="--train.{}")` sets how errors name a field.

    Raises:
      ConfigError: a value has the wrong type or is outside of its range.
    """

    _where = "--{}"

    def __init_subclass__(cls, where: str | None = None, **rest: Any):
        super().__init_subclass__(**rest)
        if where is not None:
            cls._where = where

    def __post_init__(self):
        for name in _rules(type(self)):
            check_field(type(self), name, getattr(self, name), self._where.format(name))


def check_field(config: type, name: str, value: Any, where: str) -> None:
    """Checks a value for a field of a config dataclass.

    Raises:
      ConfigError: it has the wrong type or is outside of the field's range.
    """
    rule = _rules(config).get(name)
    if rule is None or (problem := _problem(value, *rule[:3])) is None:
        return
    default = rule[3]
    fix = f"use {problem}"
    if default is not dataclasses.MISSING and not isinstance(default, tuple):
        fix += f"; the default is {'none' if default is None else default}"
    raise ConfigError(f"{name}={shown(value)} is not {problem}.", where, f"{fix}.")


def limits_of(config: type, name: str) -> Range | None:
    """Returns the range of a field of a dataclass, if it states one."""
    return config.__dataclass_fields__[name].metadata.get("limits")


@functools.cache
def _rules(config: type) -> dict[str, tuple]:
    """Returns {field: (annotation, range, whether an empty string is allowed, default)}."""
    hints = typing.get_type_hints(config)
    rules = {}
    for field in dataclasses.fields(config):
        limits, empty = field.metadata.get("limits"), field.metadata.get("empty", False)
        rules[field.name] = hints[field.name], limits, empty or field.default == "", field.default
    return rules


def _problem(value: Any, annotation: Any, limits: Range | None, empty: bool) -> str | None:
    """Returns what a value should be, such as "an integer of at least 1"; None if it is."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        (inner,) = [a for a in arguments if a is not type(None)]
        problem = None if value is None else _problem(value, inner, limits, empty)
        return problem and f"{problem}, or none"
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return "a list"
        problems = (_problem(item, arguments[0], limits, False) for item in value)
        problem = next(filter(None, problems), None)
        if problem == _NON_EMPTY:
            return "a list of non-empty strings"
        return problem and f"a list with each item {problem}"
    if origin is typing.Literal:
        return None if value in arguments else f"one of {', '.join(map(str, arguments))}"
    if annotation is bool:
        return None if isinstance(value, bool) else "true or false"
    if annotation is str:
        if not isinstance(value, (str, os.PathLike)):
            return "a string"
        return None if empty or str(value) else _NON_EMPTY
    if annotation is int:
        return _integer_problem(value, limits or Range())
    if annotation is float:
        return None if _is_number(value, limits or Range()) else _number(limits or Range())
    return None


def _integer_problem(value: Any, limits: Range) -> str | None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value not in limits:
        return _named("an integer", limits)
    if limits.at_most is None and limits.below is None and abs(int(value)) > _INT32_MAX:
        return _named("an integer", dataclasses.replace(limits, at_most=_INT32_MAX))
    return None


def _is_number(value: Any, limits: Range) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or value not in limits:
        return False
    try:
        if not math.isfinite(value):
            return limits.infinite and not math.isnan(value)
        on_device = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return False
    if limits.above == 0 and value < _FLOAT32_TINY:
        return False
    return on_device in Range(above=limits.above, below=limits.below)


def _number(limits: Range) -> str:
    return _named("a number" if limits.infinite else "a finite number", limits)


def _named(kind: str, limits: Range) -> str:
    words = str(limits)
    return f"{kind} {'of ' if words.startswith('at ') else ''}{words}".rstrip()


def shown(value: Any) -> str:
    """Returns a value as an error prints it, in at most 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print an integer of more than 4,300 digits
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"
