"""Tools from functions, and what is said about arguments that do not fit their schema."""

import dataclasses
import enum
import re
from typing import Annotated, Literal, TypedDict

import pytest

from qwen_jax.agent import schema
from qwen_jax.agent.function import tool
from qwen_jax.agent.tool import Limits, Tool
from qwen_jax.errors import ConfigError
from qwen_jax.tokenizer.dialects.hermes import HERMES
from qwen_jax.tokenizer.dialects.react import REACT


class Unit(enum.Enum):
    CELSIUS = "c"
    KELVIN = "k"


class Place(TypedDict):
    city: str
    district: str | None


def test_tool_takes_its_schema_from_the_signature_and_the_docstring():
    @tool
    def weather(
        place: Place,
        unit: Unit,
        days: int = 3,
        wind: bool = False,
        parts: list[Literal["rain", "sun"]] | None = None,
        limits: Limits = Limits(),  # noqa: B008
        height: Annotated[float, "in meters"] = 0.0,
        names: dict[str, int] | None = None,
    ) -> str:
        """Tells the weather
        of a place.

        More that the model need not read.

        Args:
          place: where,
            and in which district.
          days: how many: days.
        """
        return f"{place['city']} {unit} {days} {limits is not None} {height!r}"

    assert (weather.name, weather.description) == ("weather", "Tells the weather of a place.")
    nullable = {"type": ["string", "null"]}
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "place": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "district": nullable},
                "required": ["city", "district"],
                "description": "where, and in which district.",
            },
            "unit": {"enum": ["c", "k"]},
            "days": {"type": "integer", "description": "how many: days.", "default": 3},
            "wind": {"type": "boolean", "default": False},
            "parts": {
                "anyOf": [
                    {"type": "array", "items": {"enum": ["rain", "sun"]}},
                    {"type": "null"},
                ]
            },
            "height": {"type": "number", "description": "in meters", "default": 0.0},
            "names": {
                "anyOf": [
                    {"type": "object", "additionalProperties": {"type": "integer"}},
                    {"type": "null"},
                ]
            },
        },
        "required": ["place", "unit"],
        "additionalProperties": False,
    }
    arguments = {"place": {"city": "Oslo", "district": None}, "unit": "k", "height": 2}
    assert schema.problems(arguments, weather.parameters) == []
    assert weather.run(arguments, Limits()) == "Oslo Unit.KELVIN 3 True 2.0"


def test_tool_refuses_types_by_name():
    def with_type(hint):
        def function(value):
            """Does something."""

        function.__annotations__["value"] = hint
        return function

    @dataclasses.dataclass
    class Own:
        x: int

    for hint, name in (
        *((Own, "Own"), (bytes, "bytes"), (set[int], "set"), (re.Pattern, "Pattern")),
        *((dict[int, str], "dict"), (list[Own], "Own"), (complex | None, "complex")),
    ):
        with pytest.raises(ConfigError, match=rf"(?s){name}.*function\(value\)"):
            tool(with_type(hint))
    with pytest.raises(ConfigError, match="no type"):
        tool(_untyped)
    with pytest.raises(ConfigError, match="no docstring"):
        tool(_undocumented)
    with pytest.raises(ConfigError, match="no name that a call could use"):
        tool(_variable)


def _untyped(x):
    """Does something."""


def _undocumented(x: int):
    return x


def _variable(*values: int):
    """Does something."""


def test_tool_needs_a_name_that_servers_accept():
    with pytest.raises(ConfigError, match="not a name of a tool"):
        Tool("two words", "x", lambda arguments, limits: "")
    with pytest.raises(ConfigError, match="schema of an object"):
        Tool("x", "x", lambda arguments, limits: "", {"type": "string"})


def test_definition_depends_on_dialect_and_language():
    parameters = {"type": "object", "properties": {"code": {"type": "string"}}}
    made = Tool("py", "Runs.", lambda a, b: "", parameters, "运行", text_parameter="code")
    hermes = made.definition(HERMES)["function"]
    assert hermes == {"name": "py", "description": "Runs.", "parameters": parameters}
    react = made.definition(REACT, "zh")["function"]
    assert "parameters" not in react and react["description"].startswith("运行 此工具的输入")


RECURSIVE = {
    "$ref": "#/$defs/x",
    "$defs": {"x": {"properties": {"n": {"$ref": "#/$defs/x"}}, "type": "object"}},
}


@pytest.mark.parametrize(
    "value, of, says",
    [
        (1.0, {"type": "integer"}, None),
        (1.5, {"type": "integer"}, "must be an integer"),
        (True, {"type": "number"}, "must be a number"),
        (True, {"enum": [1]}, "must be one of [1]"),
        (1, {"const": True}, "must be true"),
        (None, {"type": ["string", "null"]}, None),
        ("x", {"minLength": 2}, "at least 2"),
        ("xyz", {"maxLength": 2}, "at most 2"),
        ("ab1", {"pattern": r"^\d+$"}, "does not match"),
        ("ab1", {"pattern": r"\p{L}"}, None),  # a pattern of another dialect
        (5, {"minimum": 6}, "at least 6"),
        (5, {"exclusiveMaximum": 5}, "below 5"),
        (0.3, {"multipleOf": 0.1}, None),
        (0.35, {"multipleOf": 0.1}, "multiple"),
        ([1, "a"], {"items": {"type": "integer"}}, "arguments[1] must be an integer"),
        ([1, "a"], {"prefixItems": [{}, {"type": "null"}]}, "arguments[1] must be a null"),
        ([1, 1], {"uniqueItems": True}, "twice"),
        ({"a": 1, "b": 2}, {"maxProperties": 1}, "at most 1"),
        ({"a": 1}, {"additionalProperties": {"type": "string"}}, "arguments.a must be a string"),
        (3, {"anyOf": [{"type": "string"}, {"type": "null"}]}, "none of the allowed forms"),
        (3, {"oneOf": [{"type": "integer"}, {"minimum": 0}]}, "exactly one"),
        (3, {"allOf": [{"minimum": 4}]}, "at least 4"),
        ({"n": {"n": 3}}, RECURSIVE, "arguments.n.n must be an object"),
        (1, {"$ref": "other.json"}, None),
        (float("inf"), {"type": "number"}, "finite"),
        (1, False, "not allowed"),
    ],
)  # fmt: skip
def test_problems(value, of, says):
    found = schema.problems(value, of)
    assert (found == []) if says is None else says in found[0], found
