"""The tool `calculator`: exact arithmetic on text. Nothing of it is evaluated as Python."""

import ast
import math
import operator
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from qwen_jax.agent.tool import Limits, Result, Tool

_MAX_LENGTH = 1000  # characters of an expression
_MAX_DEPTH = 60
_MAX_BITS = 40_000  # of a number: about 12,000 digits
_MAX_SHOWN = 400  # digits
_SYMBOLS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "·": "*", "π": "pi", "√": "sqrt"})
Number = Fraction | float


class _Refused(Exception):
    """Why an expression has no value; the message is for the model."""


def calculate(expression: str) -> str:
    """Returns the value of an expression as text.

    Integers and fractions are exact. Roots, logarithms and angles that are not rational are decimal
    numbers of 15 digits, marked by ≈. `^` is a power, as on calculators.

    Raises:
      ValueError: the expression has no value, or is not one; the message says why.

    Example:
      >>> calculate("0.1 + 0.2"), calculate("1/3 + 1/6"), calculate("2^0.5")
      ('0.3', '0.5', '≈ 1.4142135623731')
    """
    text = unicodedata.normalize("NFKC", expression).translate(_SYMBOLS).strip().rstrip("=").strip()
    text = text.replace("^", "**")
    if not text or len(text) > _MAX_LENGTH:
        raise ValueError(f"an expression has 1 to {_MAX_LENGTH} characters")
    text = _without_separators(text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{text[:100]!r} is not an arithmetic expression") from None
    try:
        return _shown(_value(tree.body, text, 0))
    except _Refused as error:
        raise ValueError(str(error)) from None
    except ZeroDivisionError:
        raise ValueError("a division by zero") from None
    except OverflowError:
        raise ValueError("the result is too large") from None


def calculator() -> Tool:
    """Returns the tool."""

    def run(arguments: dict, limits: Limits) -> Result:
        try:
            return Result(calculate(arguments["expression"]))
        except ValueError as error:
            return Result(f"Error: {error}.", is_error=True)

    return Tool(
        "calculator",
        "Computes an arithmetic expression exactly: + - * / // % ^, brackets, and the functions "
        f"{', '.join(sorted(_FUNCTIONS))}, with the constants pi and e.",
        run,
        {
            "type": "object",
            "properties": {
                "expression": {"type": "string", "description": "such as (17 + 4) * 2 / 3"}
            },
            "required": ["expression"],
            "additionalProperties": False,
        },
        "精确计算算术表达式:+ - * / // % ^、括号、函数以及常数 pi 和 e。",
        concurrent=True,
    )


def _without_separators(text: str) -> str:
    """Removes commas between groups of three digits, if there is no function with arguments."""
    parts = text.split(",")
    groups = all(
        part[:3].isdigit() and not part[3:4].isdigit() and before[-1:].isdigit()
        for before, part in zip(parts, parts[1:], strict=False)
    )
    return "".join(parts) if len(parts) > 1 and groups and "(" not in text else text


def _value(node: ast.expr, text: str, depth: int) -> Number:
    if depth > _MAX_DEPTH:
        raise _Refused("the expression is nested too deeply")
    if isinstance(node, ast.Constant):
        return _constant(node, text)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _bounded(_SIGNS[type(node.op)](_value(node.operand, text, depth + 1)))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = (_value(one, text, depth + 1) for one in (node.left, node.right))
        return _bounded(_OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.Name) and node.id.lower() in _CONSTANTS:
        return _CONSTANTS[node.id.lower()]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if (function := _FUNCTIONS.get(node.func.id.lower())) is None:
            known = ", ".join(sorted(_FUNCTIONS))
            raise _Refused(f"there is no function {node.func.id[:40]!r}; known: {known}")
        values = [_value(one, text, depth + 1) for one in node.args]
        try:
            return _bounded(function(*values))
        except TypeError:
            raise _Refused(f"{node.func.id} does not take {len(values)} numbers") from None
        except ValueError:
            raise _Refused(f"{node.func.id} has no real value there") from None
    if isinstance(node, ast.Name):
        raise _Refused(f"{node.id[:40]!r} is not a number, and letters have no value here")
    raise _Refused(f"{(ast.get_source_segment(text, node) or '')[:60]!r} is not arithmetic")


def _constant(node: ast.Constant, text: str) -> Fraction:
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        raise _Refused(f"{str(node.value)[:40]!r} is not a number")
    if isinstance(node.value, int):
        return _bounded(Fraction(node.value))  # pyright: ignore[reportReturnType]
    digits = (ast.get_source_segment(text, node) or repr(node.value)).replace("_", "")
    exponent = digits.lower().partition("e")[2]
    if exponent and abs(int(exponent)) > 10_000:
        raise _Refused("the number is too large")
    return Fraction(digits)  # as it is written: 0.1 is a tenth


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if bits > 1 and bits * abs(exponent.numerator) > _MAX_BITS:
                raise _Refused("the power is too large")
            return base**exponent.numerator
        if exponent == Fraction(1, 2):
            return _root(base)
    if base < 0:
        raise _Refused("a power of a negative number with a fraction is not real")
    return float(base) ** float(exponent)


def _root(value: Number) -> Number:
    if value < 0:
        raise _Refused("the square root of a negative number is not real")
    if isinstance(value, Fraction):
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if top * top == value.numerator and bottom * bottom == value.denominator:
            return Fraction(top, bottom)
    return math.sqrt(value)


def _floor(value: Number) -> Fraction:
    return Fraction(math.floor(value))


def _integer(value: Number) -> int:
    if value != int(value) or abs(value) > 10_000:
        raise _Refused("this needs an integer up to 10,000")
    return int(value)


def _factorial(value: Number) -> Fraction:
    number = _integer(value)
    if not 0 <= number <= 3000:
        raise _Refused("a factorial needs an integer from 0 to 3,000")
    return Fraction(math.factorial(number))


def _round(value: Number, digits: Number = Fraction(0)) -> Number:
    return round(value, _integer(digits)) if isinstance(value, Fraction) else round(value, 0)


def _bounded(value: Number) -> Number:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Refused("the result is too large")
        return value
    value = Fraction(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise _Refused("a number has too many digits")
    return value


def _shown(value: Number) -> str:
    """Returns an exact number as a decimal if that ends, otherwise as a fraction and a decimal."""
    if isinstance(value, float):
        return f"≈ {value:.14g}"
    top, bottom = value.numerator, value.denominator
    if bottom == 1:
        return _limited(_digits(top))
    rest, twos, fives = bottom, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest == 1 and places <= 60:
        scaled = _digits(abs(top) * 10**places // bottom).rjust(places + 1, "0")
        return _limited(f"{'-' if top < 0 else ''}{scaled[:-places]}.{scaled[-places:]}")
    return f"{_limited(_digits(top))}/{_limited(_digits(bottom))} ≈ {float(value):.14g}"


def _digits(value: int) -> str:
    """Returns the digits of an integer of any length; Python's str has a limit."""
    if abs(value).bit_length() < 10_000:
        return str(value)
    half = abs(value).bit_length() * 3 // 20
    high, low = divmod(abs(value), 10**half)
    return f"{'-' if value < 0 else ''}{_digits(high)}{_digits(low).rjust(half, '0')}"


def _limited(text: str) -> str:
    if len(text) <= _MAX_SHOWN:
        return text
    return f"{text[:50]}...{text[-50:]} ({len(text)} digits)"


_SIGNS: dict[type, Callable[..., Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda left, right: _floor(left / right),
    ast.Mod: lambda left, right: left - right * _floor(left / right),
    ast.Pow: _power,
}
_CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": lambda value: Fraction(math.ceil(value)),
    "cos": math.cos,
    "exp": math.exp,
    "factorial": _factorial,
    "floor": _floor,
    "gcd": lambda *values: Fraction(math.gcd(*map(_integer, values))),
    "lcm": lambda *values: Fraction(math.lcm(*map(_integer, values))),
    "ln": math.log,
    "log": lambda value, base=10: math.log10(value) if base == 10 else math.log(value, base),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "round": _round,
    "sin": math.sin,
    "sqrt": _root,
    "sum": lambda *values: sum(values, Fraction(0)),
    "tan": math.tan,
}
