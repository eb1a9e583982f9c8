"""Trees -> canonical forms. Only identities that always hold are used.

So equal forms are equal values: b^(u+v) = b^u b^v, sin x = (E - 1/E) / 2i with E = e^(ix), angles
of 15 degrees as square roots, ln 12 = 2 ln 2 + ln 3, and sqrt(3 + 2 sqrt 2) = 1 + sqrt 2.
"""

import math
from fractions import Fraction

from qwen_jax.grading.symbolic.polynomials import (
    MAX_STEPS,
    Arithmetic,
    Quotient,
    TooLarge,
    Undefined,
    factors,
    rational,
)
from qwen_jax.grading.symbolic.tree import Node, integer_value
from qwen_jax.grading.symbolic.units import DEGREE

MAX_FACTORIAL = 1000  # 8,530 bits
MAX_PARTS = 12  # of an exponent that is split

_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})


class Algebra(Arithmetic):
    """Canonical forms of the parts of one comparison."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Node, Quotient] = {}

    def equal(self, first: Node, second: Node) -> bool:
        """Whether the canonical forms are equal. Raises TooLarge."""
        return self.same(self.of(first), self.of(second))

    def difference(self, first: Node, second: Node) -> Quotient:
        return self.add(self.of(first), self.multiply(self.of(second), rational(-1)))

    def of(self, node: Node) -> Quotient:
        """Returns the canonical form of a value. Raises TooLarge."""
        if node not in self._known:
            self._known[node] = self._of(node)
        return self._known[node]

    def _of(self, node: Node) -> Quotient:
        kind, args = node
        if kind == "number":
            return rational(args[0])
        if kind in ("symbol", "constant"):
            return self.atom(args[0], certain=True)
        if kind in ("add", "mul"):
            total = self.of(args[0])
            step = self.add if kind == "add" else self.multiply
            for part in args[1:]:
                total = step(total, self.of(part))
            return total
        if kind == "neg":
            return self.multiply(rational(-1), self.of(args[0]))
        if kind == "div":
            return self.divide(self.of(args[0]), self.of(args[1]))
        if kind == "mixed":
            return self.add(self.of(args[0]), self.divide(self.of(args[1]), self.of(args[2])))
        if kind in ("unit", "percent"):
            return self.of(args[0])
        if kind == "root":
            degree = self.of(args[0]).constant()
            if degree is None or degree.denominator != 1 or not 1 <= degree <= 12:
                raise TooLarge("the degree of a root")
            return self.root(int(degree), self.of(args[1]))
        if kind == "pow":
            return self.raised(self.of(args[0]), self.of(args[1]))
        return self._other(node)

    def _other(self, node: Node) -> Quotient:
        kind, args = node
        if kind == "factorial":
            value = integer_value(args[0])
            if value is not None and 0 <= value <= MAX_FACTORIAL:
                return rational(math.factorial(value))
            return self.atom(f"{self.of(args[0]).spelled()}!")
        if kind == "abs":
            value = self.of(args[0])
            number = value.constant()
            if number is not None:
                return rational(abs(number))
            return self.atom(f"abs({value.spelled()})")
        if kind == "based":
            return self.atom(f"{args[0]} in base {args[1]}", certain=True)
        if kind == "call":
            return self._called(*args)
        raise TooLarge(f"no value: {kind}")

    # Powers

    def raised(self, base: Quotient, exponent: Quotient) -> Quotient:
        value = exponent.constant()
        if value is None:
            return self._split(base, exponent)
        if value.denominator == 1:
            try:
                return self.power(base, value.numerator)
            except Undefined:
                raise
            except TooLarge:  # 10^(10^8) is equal to itself only
                if self.steps > MAX_STEPS:
                    raise
                return self.atom(f"{base.spelled()}^{value}")
        if value.denominator <= 12:
            return self.power(self.root(value.denominator, base), value.numerator)
        return self.atom(f"{base.spelled()}^{value}")

    def _split(self, base: Quotient, exponent: Quotient) -> Quotient:
        """b^(2 + n - x/2) as b^2 b^n / b^(x/2): a product of powers of atoms."""
        if exponent.under != {(): 1} or len(exponent.over) > MAX_PARTS:
            return self.atom(f"{base.spelled()}^{exponent.spelled()}")
        total = rational(1)
        for key, value in sorted(exponent.over.items()):
            if not key:
                power = self.raised(base, rational(value))
            else:
                part = Quotient({key: Fraction(1, value.denominator)})
                atom = self.atom(f"{base.spelled()}^{part.spelled()}")
                power = self.power(atom, value.numerator)
            total = self.multiply(total, power)
        return total

    def root(self, degree: int, value: Quotient) -> Quotient:
        if degree == 2 and (simple := self._denested(value)) is not None:
            return simple
        return super().root(degree, value)

    def _denested(self, value: Quotient) -> Quotient | None:
        """sqrt(a + b sqrt c) as a sum of two roots, where a^2 - b^2 c is a square."""
        if value.under != {(): 1} or len(value.over) != 2 or () not in value.over:
            return None
        a = value.over[()]
        ((key, b),) = [item for item in value.over.items() if item[0]]
        if any(not atom.startswith("root2[") or times != 1 for atom, times in key):
            return None
        c = self.power(Quotient({key: Fraction(1)}), 2).constant()
        if c is None or a <= 0 or (square := a * a - b * b * c) < 0:
            return None
        d = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
        if d * d != square:
            return None
        larger = super().root(2, rational((a + d) / 2))
        smaller = super().root(2, rational((a - d) / 2))
        return self.add(larger, self.multiply(rational(1 if b > 0 else -1), smaller))

    # Functions

    def _called(self, name: str, arguments: tuple[Node, ...]) -> Quotient:
        values = [self._angle(inner) for inner in arguments]
        if name == "exp" and len(values) == 1:
            return self.raised(self.atom("e", certain=True), values[0])
        if name in _TRIGONOMETRIC and len(values) == 1:
            return self._trigonometric(name, values[0])
        if name == "log" and len(values) == 2:
            return self.divide(self._logarithm("ln", values[0]), self._logarithm("ln", values[1]))
        if name == "lg" and len(values) == 1:
            return self.divide(
                self._logarithm("ln", values[0]), self._logarithm("ln", rational(10))
            )
        if name in ("ln", "log") and len(values) == 1:
            return self._logarithm(name, values[0])
        if name == "binom" and len(values) == 2:
            above, below = values[0].constant(), values[1].constant()
            if above is not None and below is not None and 0 <= below <= above <= 200:
                if above.denominator == below.denominator == 1:
                    return rational(math.comb(int(above), int(below)))
        return self.atom(f"{name}({', '.join(value.spelled() for value in values)})")

    def _angle(self, node: Node) -> Quotient:
        value = self.of(node)
        if node.kind != "unit" or node.args[1] != DEGREE:
            return value
        half_turns = self.multiply(value, rational(Fraction(1, 180)))
        return self.multiply(half_turns, self.atom("pi", certain=True))

    def _logarithm(self, name: str, value: Quotient) -> Quotient:
        number = value.constant()
        if name == "ln" and self.same(value, Quotient({(("e", 1),): Fraction(1)})):
            return rational(1)
        if number is None or number <= 0 or number.numerator.bit_length() > 400:
            return self.atom(f"{name}({value.spelled()})")
        total = rational(0)
        for whole, sign in ((number.numerator, 1), (number.denominator, -1)):
            for prime, times in factors(whole):
                part = self.multiply(rational(sign * times), self.atom(f"{name}({prime})"))
                total = self.add(total, part)
        return total

    def _trigonometric(self, name: str, angle: Quotient) -> Quotient:
        turned = self._turn(angle)
        back = self.divide(rational(1), turned)
        i = self.atom("i", certain=True)
        cosine = self.multiply(self.add(turned, back), rational(Fraction(1, 2)))
        difference = self.add(turned, self.multiply(rational(-1), back))
        sine = self.multiply(difference, self.multiply(i, rational(Fraction(-1, 2))))
        over, under = {
            "sin": (sine, None), "cos": (cosine, None), "tan": (sine, cosine),
            "cot": (cosine, sine), "sec": (rational(1), cosine), "csc": (rational(1), sine),
        }[name]  # fmt: skip
        return over if under is None else self.divide(over, under)

    def _turn(self, angle: Quotient) -> Quotient:
        """e^(i angle). A multiple of pi/12 is a number with square roots."""
        if angle.under != {(): 1} or len(angle.over) > MAX_PARTS:
            return self.atom(f"e^i({angle.spelled()})")
        total = rational(1)
        for key, value in sorted(angle.over.items()):
            if key == (("pi", 1),):
                power = self._turn_of_pi(value)
            else:
                part = Quotient({key: Fraction(1, value.denominator)})
                power = self.power(self.atom(f"e^i({part.spelled()})"), value.numerator)
            total = self.multiply(total, power)
        return total

    def _turn_of_pi(self, half_turns: Fraction) -> Quotient:
        half_turns %= 2
        if 12 % half_turns.denominator:
            step = self.atom(f"e^i(pi/{half_turns.denominator})")
            return self.power(step, half_turns.numerator)
        i, half = self.atom("i", certain=True), Fraction(1, 2)
        # pi/12 is pi/3 - pi/4, so k pi/12 is that many thirds and quarters.
        root = {
            n: self.multiply(rational(half), super(Algebra, self).root(2, rational(n)))
            for n in (2, 3)
        }
        third = self.add(rational(half), self.multiply(root[3], i))
        quarter = self.multiply(root[2], self.add(rational(1), self.multiply(i, rational(-1))))
        steps = int(half_turns * 12)
        return self.multiply(self.power(third, steps % 6), self.power(quarter, steps % 8))
