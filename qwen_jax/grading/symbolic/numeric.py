"""Values of an expression at a few points: two expressions that differ at one are not equal.

Equal values prove nothing (1/2004! and 1/2006! are both about 0), so they never grade an answer
right. Whether values differ is judged against the largest intermediate value, because that is what
the rounding errors are proportional to.
"""

import cmath
import math

from qwen_jax.grading.symbolic.tree import Node, walk
from qwen_jax.grading.symbolic.units import DEGREE

_TOLERANCE = 1e-8  # of the largest intermediate value; the errors are near 1e-15 of it
_POINTS = ((0.7390851, 0.3141), (1.9318516, 0.2718), (-1.4655712, 0.5671))  # start and step

_FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "arcsin": cmath.asin,
    "arccos": cmath.acos, "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh,
    "tanh": cmath.tanh, "exp": cmath.exp, "ln": cmath.log, "lg": cmath.log10,
    "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x),
    "cot": lambda x: cmath.cos(x) / cmath.sin(x),
}  # fmt: skip


class _NoValue(Exception):
    pass


class _Point:
    """Evaluates trees with a value for each variable."""

    def __init__(self, values: dict[str, complex]):
        self.values = values
        self.largest = 0.0  # intermediate value
        self.visits = 0

    def of(self, node: Node) -> complex:
        self.visits += 1
        if self.visits > 4000:
            raise _NoValue
        value = self._of(node)
        value = complex(value.real + 0.0, value.imag + 0.0)  # -0.0 is another branch of a root
        size = abs(value)
        if not math.isfinite(size) or 0 < size < 1e-200 or size > 1e200:
            raise _NoValue
        self.largest = max(self.largest, size)
        return value

    def _of(self, node: Node) -> complex:
        kind, args = node
        if kind == "number":
            return complex(float(args[0]))
        if kind == "symbol":
            return self.values[args[0]]
        if kind == "add":
            return sum((self.of(part) for part in args), 0j)
        if kind == "mul":
            return math.prod((self.of(part) for part in args), start=1 + 0j)
        if kind == "neg":
            return -self.of(args[0])
        if kind == "div":
            return self.of(args[0]) / self.of(args[1])
        if kind == "mixed":
            return self.of(args[0]) + self.of(args[1]) / self.of(args[2])
        if kind == "pow":
            return self._power(self.of(args[0]), self.of(args[1]))
        if kind == "root":
            return self._root(self.of(args[0]), self.of(args[1]))
        if kind in ("unit", "percent"):
            return self.of(args[0])
        if kind == "abs":
            return complex(abs(self.of(args[0])))
        if kind == "call":
            return self._call(args[0], args[1])
        raise _NoValue

    def _power(self, base: complex, exponent: complex) -> complex:
        if exponent.imag == 0 == base.imag and base.real < 0:
            for degree in (1, 3, 5, 7, 9, 11):  # odd: as `canonical` has it, the real root
                times = exponent.real * degree
                if abs(times - round(times)) < 1e-12:
                    return self._root(complex(degree), base) ** round(times)
        if base == 0 and exponent.real < 0:
            raise _NoValue
        return base**exponent

    def _root(self, degree: complex, value: complex) -> complex:
        if not value:
            return 0j
        if value.imag == 0 and value.real < 0 and degree.real % 2 == 1:  # the real root
            return complex(-((-value.real) ** (1 / degree.real)))
        return value ** (1 / degree)

    def _call(self, name: str, arguments: tuple[Node, ...]) -> complex:
        values = [self.of(part) for part in arguments]
        if arguments[0].kind == "unit" and arguments[0].args[1] == DEGREE:
            values[0] *= math.pi / 180
        if name == "log" and len(values) == 2:
            return cmath.log(values[0]) / cmath.log(values[1])
        if name not in _FUNCTIONS or len(values) != 1:
            raise _NoValue
        return _FUNCTIONS[name](values[0])


def differ(first: Node, second: Node) -> bool | None:
    """Whether the two expressions certainly have different values at one of three points.

    None if one of them has no value at any of the points.
    """
    names = sorted(
        {part.args[0] for node in (first, second) for part in walk(node) if part.kind == "symbol"}
    )
    fixed = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}
    compared = 0
    for start, step in _POINTS:
        values = {name: complex(start + step * k) for k, name in enumerate(names)} | fixed
        point = _Point(values)
        try:
            a, b = point.of(first), point.of(second)
        except (_NoValue, ArithmeticError, ValueError, KeyError):
            continue
        if abs(a - b) > _TOLERANCE * point.largest:
            return True
        compared += 1
        if not names:
            break
    return False if compared else None
