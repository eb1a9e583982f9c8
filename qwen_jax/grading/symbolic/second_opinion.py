"""The second opinion: sympy proves that the difference of two expressions is zero.

sympy gets trees, never text, and only small ones: it neither parses nor evaluates what a model
wrote. Its work is limited by counting calls of Python functions with a profile function, so the
limit works in any thread, needs no signal, and is the same on every machine.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from qwen_jax.grading.symbolic.tree import Node, walk
from qwen_jax.grading.symbolic.units import DEGREE

MAX_NODES = 60
MAX_EXPONENT = 12
MAX_VALUE = 10**12
MAX_CALLS = 150_000  # of Python functions


class _Refused(Exception):
    """A tree that sympy does not get."""


class _OverBudget(BaseException):
    """Raised inside sympy; not an Exception, so that sympy does not catch it."""


def installed() -> bool:
    """Whether sympy can be imported (pip install 'qwen_jax[evaluate]')."""
    return importlib.util.find_spec("sympy") is not None


def equal(first: Node, second: Node) -> bool | None:
    """Whether sympy simplifies first - second to zero; None if it gets no answer within its limits.

    The caller has made sure that sympy is installed, and that numbers do not tell the two apart.
    """
    if sum(1 for node in (first, second) for _ in walk(node)) > MAX_NODES:
        return None
    import sympy
    from sympy.core.cache import clear_cache

    _warm_up()
    clear_cache()  # otherwise the count of calls depends on earlier answers
    try:
        return _within_budget(lambda: _is_zero(sympy, first, second))
    except _Refused:
        return None
    except Exception:  # sympy raises many kinds on input that it was not made for
        return None


def load(log: Callable[[str], None]) -> None:
    """Imports sympy, if it is installed, before the first answer is graded.

    From a cold disk that takes half a minute, which would look like a first answer that hangs.
    """
    if installed() and not _warm_up.cache_info().currsize:
        log("loading sympy, the second opinion on mathematical answers ...")
        _warm_up()


@functools.cache
def _warm_up() -> None:
    """Lets sympy make the tables that it makes once, which do not count as work of an answer."""
    import sympy

    x = sympy.Symbol("x")
    sympy.simplify(sympy.atan(1) + sympy.sqrt(5 + 2 * sympy.sqrt(6)) * sympy.log(x))


def _is_zero(sympy: Any, first: Node, second: Node) -> bool:
    difference = _tree(sympy, first) - _tree(sympy, second)
    for simplified in (sympy.expand, sympy.simplify):
        difference = simplified(difference)
        if difference == 0:
            return True
    return False


def _within_budget(work):
    """Returns work(), or None once it has made too many calls."""
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        if event != "call":
            return
        calls += 1
        if calls > MAX_CALLS:
            raise _OverBudget

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        return work()
    except _OverBudget:
        return None
    finally:
        sys.setprofile(before)


def _tree(sympy: Any, node: Node) -> Any:
    """Returns the expression as sympy's. Raises _Refused for what is too large or unknown."""
    kind, args = node
    if kind == "number":
        value: Fraction = args[0]
        if max(abs(value.numerator), value.denominator) > MAX_VALUE:
            raise _Refused
        return sympy.Rational(value.numerator, value.denominator)
    if kind == "symbol":
        constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}
        return constants.get(args[0]) or sympy.Symbol(args[0])
    parts = [_tree(sympy, arg) for arg in args if isinstance(arg, Node)]
    if kind == "add":
        return sympy.Add(*parts)
    if kind == "mul":
        return sympy.Mul(*parts)
    if kind == "neg":
        return -parts[0]
    if kind == "div":
        return parts[0] / parts[1]
    if kind == "mixed":
        return parts[0] + parts[1] / parts[2]
    if kind == "root":
        return _root(sympy, parts[0], parts[1])
    if kind == "pow":
        return _power(sympy, parts[0], parts[1])
    if kind == "abs":
        return sympy.Abs(parts[0])
    if kind in ("unit", "percent"):
        return parts[0]
    if kind == "call":
        return _call(sympy, args[0], args[1])
    raise _Refused


def _root(sympy: Any, degree: Any, value: Any) -> Any:
    if not degree.is_Integer or not 2 <= degree <= MAX_EXPONENT:
        raise _Refused
    if degree % 2 and value.is_negative:
        return -((-value) ** sympy.Rational(1, degree))
    return value ** sympy.Rational(1, degree)


def _power(sympy: Any, base: Any, exponent: Any) -> Any:
    """A power whose value is not larger than the numbers that sympy gets."""
    if exponent.is_number and not exponent.is_Rational and exponent.has(sympy.Pow):
        raise _Refused  # a tower
    if exponent.is_Rational:
        if max(abs(exponent.p), exponent.q) > MAX_EXPONENT:
            raise _Refused
    elif any(abs(number) > MAX_EXPONENT for number in exponent.atoms(sympy.Rational)):
        raise _Refused
    return base**exponent


def _call(sympy: Any, name: str, arguments: tuple[Node, ...]) -> Any:
    values = [_tree(sympy, part) for part in arguments]
    if arguments[0].kind == "unit" and arguments[0].args[1] == DEGREE:
        values[0] = values[0] * sympy.pi / 180
    known = {
        "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot,
        "sec": sympy.sec, "csc": sympy.csc, "arcsin": sympy.asin, "arccos": sympy.acos,
        "arctan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh,
        "exp": sympy.exp, "ln": sympy.log, "log": sympy.log,
    }  # fmt: skip
    if name not in known or len(values) > (2 if name == "log" else 1):
        raise _Refused
    return known[name](*values)
