"""Quotients of polynomials over the rationals: the arithmetic of canonical forms.

An atom stands for what is not a rational number: a variable, pi, e, i, the root of a prime, or any
other part, named by its canonical spelling. An atom may have a power that is known, as i^2 = -1.
If the only atoms are variables, pi, i and square roots of primes, different quotients are different
values; with others they may be equal, and `Arithmetic.certain` is false.

Work is counted in products of terms, not in seconds: a verdict is the same on every machine.
"""

import math
from fractions import Fraction

Monomial = tuple[tuple[str, int], ...]  # (atom, exponent > 0), sorted
Polynomial = dict[Monomial, Fraction]
_ONE: Polynomial = {(): Fraction(1)}

MAX_STEPS = 15_000  # products of terms in one verdict
MAX_TERMS = 500
MAX_POWER = 40  # (x + y)^40 has 41 terms
MAX_BITS = 12_000  # of one coefficient
_TRIAL = 2000  # largest prime that roots are searched for


class TooLarge(Exception):
    """An expression whose canonical form is beyond the limits."""


class Undefined(TooLarge):
    """An expression without a value, such as 1/0."""


class Quotient:
    """numerator / denominator."""

    def __init__(self, over: Polynomial, under: Polynomial = _ONE):
        self.over, self.under = over, under

    def constant(self) -> Fraction | None:
        """Returns the value if it is a rational number."""
        if set(self.over) <= {()} and set(self.under) == {()}:
            return self.over.get((), Fraction(0)) / self.under[()]
        return None

    def spelled(self) -> str:
        """Returns a canonical text: equal texts are equal expressions."""
        lead = self.under[min(self.under)]
        return f"({_spelled(self.over, lead)})/({_spelled(self.under, lead)})"


def _spelled(poly: Polynomial, lead: Fraction) -> str:
    return "+".join(f"{value / lead}{key}" for key, value in sorted(poly.items()))


def rational(value: Fraction | int) -> Quotient:
    value = Fraction(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLarge("digits")
    return Quotient({(): value} if value else {})


class Arithmetic:
    """Sums, products, powers and roots of quotients, with one budget of work."""

    def __init__(self) -> None:
        self.steps = 0
        self.certain = True
        self._roots: dict[str, tuple[int, Quotient]] = {"i": (2, rational(-1))}  # atom^n = value

    def same(self, a: Quotient, b: Quotient) -> bool:
        """Whether the quotients are equal: a.over b.under - b.over a.under is zero."""
        return not self._minus(self._times(a.over, b.under), self._times(b.over, a.under))

    def is_multiple(self, first: Quotient, second: Quotient) -> bool:
        """Whether one numerator is the other times a number other than zero."""
        if not first.over or not second.over or first.over.keys() != second.over.keys():
            return not first.over and not second.over
        ratios = {value / second.over[key] for key, value in first.over.items()}
        return len(ratios) == 1

    # Polynomials

    def _count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise TooLarge("steps")

    def _minus(self, a: Polynomial, b: Polynomial) -> Polynomial:
        return self._plus(a, {key: -value for key, value in b.items()})

    def _plus(self, a: Polynomial, b: Polynomial) -> Polynomial:
        total = dict(a)
        self._accumulate(total, b)
        return total

    def _accumulate(self, total: Polynomial, part: Polynomial) -> None:
        self._count(len(part))
        for key, value in part.items():
            value = total.get(key, Fraction(0)) + value
            if _bits(value) > MAX_BITS:
                raise TooLarge("digits")
            if value:
                total[key] = value
            else:
                total.pop(key, None)
        if len(total) > MAX_TERMS:
            raise TooLarge("terms")

    def _times(self, a: Polynomial, b: Polynomial) -> Polynomial:
        if b == _ONE:
            return a
        if a == _ONE:
            return b
        # A product of long numbers costs as much as several of short ones.
        digits = max(map(_bits, a.values()), default=0) + max(map(_bits, b.values()), default=0)
        self._count(len(a) * len(b) * (1 + digits // 200))
        total: Polynomial = {}
        for key_a, value_a in a.items():
            for key_b, value_b in b.items():
                key, factor = self._merged(key_a, key_b)
                part = {key: value_a * value_b}
                self._accumulate(total, part if factor is None else self._times(part, factor))
        return total

    def _merged(self, a: Monomial, b: Monomial) -> tuple[Monomial, Polynomial | None]:
        """The product of monomials; roots whose powers are known leave it as a polynomial."""
        powers = dict(a)
        for atom, exponent in b:
            powers[atom] = powers.get(atom, 0) + exponent
        factor = None
        for atom, exponent in list(powers.items()):
            degree, value = self._roots.get(atom, (0, None))
            if value is None or exponent < degree or value.under != _ONE:
                continue
            times, rest = divmod(exponent, degree)
            powers.pop(atom)
            if rest:
                powers[atom] = rest
            for _ in range(times):
                factor = value.over if factor is None else self._times(factor, value.over)
        return tuple(sorted(powers.items())), factor

    # Quotients

    def add(self, a: Quotient, b: Quotient) -> Quotient:
        if a.under == b.under:
            return self._reduced(self._plus(a.over, b.over), a.under)
        over = self._plus(self._times(a.over, b.under), self._times(b.over, a.under))
        return self._reduced(over, self._times(a.under, b.under))

    def multiply(self, a: Quotient, b: Quotient) -> Quotient:
        return self._reduced(self._times(a.over, b.over), self._times(a.under, b.under))

    def divide(self, a: Quotient, b: Quotient) -> Quotient:
        if not b.over:
            raise Undefined("division by zero")
        return self.multiply(a, Quotient(b.under, b.over))

    def _reduced(self, over: Polynomial, under: Polynomial) -> Quotient:
        """Divides by what all terms share: a common factor of monomials and a number."""
        if not over:
            return Quotient({})
        shared = _common(over, under)
        if shared:
            over, under = _without(over, shared), _without(under, shared)
        if len(under) == 1:
            ((key, value),) = under.items()
            if value != 1:
                over = {k: v / value for k, v in over.items()}
                under = {key: Fraction(1)}
        return Quotient(over, under)

    def power(self, base: Quotient, exponent: int) -> Quotient:
        if abs(exponent) > MAX_POWER:
            value = base.constant()
            if value is None and len(base.over) + len(base.under) == 2 and abs(exponent) < 10**6:
                return self._monomial_power(base, exponent)
            if value is None or abs(exponent) * _bits(value) > MAX_BITS:
                raise TooLarge("exponent")
            if not value and exponent < 0:
                raise Undefined("division by zero")
            return rational(value**exponent)
        if exponent < 0:
            return self.power(self.divide(rational(1), base), -exponent)
        total = rational(1)
        for _ in range(exponent):
            total = self.multiply(total, base)
        return total

    def _monomial_power(self, base: Quotient, exponent: int) -> Quotient:
        if exponent < 0:
            base, exponent = Quotient(base.under, base.over), -exponent
        parts = []
        for poly in (base.over, base.under):
            ((key, value),) = poly.items()
            if value != 1 or any(atom in self._roots for atom, _ in key):
                raise TooLarge("exponent")
            parts.append({tuple((atom, times * exponent) for atom, times in key): Fraction(1)})
        return Quotient(*parts)

    def atom(self, name: str, certain: bool = False) -> Quotient:
        self.certain = self.certain and certain
        return Quotient({((name, 1),): Fraction(1)})

    def root(self, degree: int, value: Quotient) -> Quotient:
        """The principal root; of a number, as a number times roots of primes."""
        number = value.constant()
        if number is not None:
            return self._root_of_number(degree, number)
        content = _content(value.over) if value.under == _ONE else Fraction(1)
        inner = self.multiply(value, rational(1 / content))
        name = f"root{degree}[{inner.spelled()}]"
        self._roots[name] = (degree, inner)
        return self.multiply(self._root_of_number(degree, content), self.atom(name))

    def _root_of_number(self, degree: int, value: Fraction) -> Quotient:
        if value < 0:
            if degree == 2:
                inner = self._root_of_number(2, -value)
                return self.multiply(self.atom("i", certain=True), inner)
            if degree % 2 == 0:
                raise TooLarge("an even root of a negative number")
            return self.multiply(rational(-1), self._root_of_number(degree, -value))
        if not value:
            return rational(0)
        # The root of a/b is the root of a b^(n-1), divided by b.
        whole = value.numerator * value.denominator ** (degree - 1)
        if whole.bit_length() > 400:
            raise TooLarge("digits")
        total = rational(Fraction(1, value.denominator))
        for prime, times in factors(whole):
            outside, inside = divmod(times, degree)
            total = self.multiply(total, rational(prime**outside))
            if inside:
                shared = math.gcd(inside, degree)
                name = f"root{degree // shared}[{prime}]"
                self._roots[name] = (degree // shared, rational(prime))
                atom = self.atom(name, certain=degree // shared == 2 and prime <= _TRIAL**2)
                total = self.multiply(total, self.power(atom, inside // shared))
        return total


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _common(*polys: Polynomial) -> dict[str, int]:
    """The atoms that every term has, with their smallest exponent."""
    shared: dict[str, int] | None = None
    for poly in polys:
        for key in poly:
            powers = dict(key)
            if shared is None:
                shared = powers
            else:
                shared = {a: min(n, powers[a]) for a, n in shared.items() if a in powers}
            if not shared:
                return {}
    return shared or {}


def _without(poly: Polynomial, shared: dict[str, int]) -> Polynomial:
    return {
        tuple((a, n - shared.get(a, 0)) for a, n in key if n > shared.get(a, 0)): value
        for key, value in poly.items()
    }


def _content(poly: Polynomial) -> Fraction:
    """The positive number that leaves coprime integers when the polynomial is divided by it."""
    over = math.gcd(*(value.numerator for value in poly.values()))
    return Fraction(over, math.lcm(*(value.denominator for value in poly.values())))


def factors(value: int) -> list[tuple[int, int]]:
    """Returns (prime, times); a last factor beyond the trial divisions may be composite."""
    found, prime = [], 2
    while prime <= _TRIAL and prime * prime <= value:
        times = 0
        while value % prime == 0:
            value //= prime
            times += 1
        if times:
            found.append((prime, times))
        prime += 1 if prime == 2 else 2
    if value > 1:
        side = math.isqrt(value)
        found.append((side, 2) if side * side == value else (value, 1))
    return found
