"""Exact values of arithmetic as Math23K writes it: x=3.14*[(3+2)^2-3^2], 80%, 5((7)/(10))."""

import re
from fractions import Fraction

MAX_TOKENS = 400
MAX_DEPTH = 40
MAX_DIGITS = 60  # of one number
MAX_EXPONENT = 64

_TOKEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+|\*\*|[-+*/^%()])")
_SPELLINGS = str.maketrans("[]{}×÷−－（）％", "()()*/--()%")


class _NoValue(Exception):
    pass


def value(text: str) -> Fraction | None:
    """Returns the value of an equation or a number, or None if the text is neither.

    p% is p/100, and a number before a bracketed fraction is a mixed number: 5((7)/(10)) is 5.7.
    `^` is a power with an integer exponent. Never raises.

    Example:
      >>> value("x=(3+(1/2))/(1-20%)")
      Fraction(35, 8)
    """
    text = text.strip()
    if text[:2] in ("x=", "X="):
        text = text[2:]
    found, end = [], 0
    for match in _TOKEN.finditer(text := text.translate(_SPELLINGS)[:4000]):
        if match.start() != end or len(found) >= MAX_TOKENS or len(match[1]) > MAX_DIGITS:
            return None
        found.append(match[1])
        end = match.end()
    if text[end:].strip() or not found:
        return None
    reader = _Reader(found)
    try:
        total = reader.sum()
    except (_NoValue, ZeroDivisionError):
        return None
    return total if reader.at == len(found) else None


class _Reader:
    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.depth = tokens, 0, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if token not in wanted:
            return ""
        self.at += 1
        return token

    def sum(self) -> Fraction:
        total = self.product()
        while sign := self.take("+", "-"):
            term = self.product()
            total = total + term if sign == "+" else total - term
        return _bounded(total)

    def product(self) -> Fraction:
        total = self.signed()
        while sign := self.take("*", "/"):
            factor = self.signed()
            total = total * factor if sign == "*" else total / factor
            _bounded(total)
        return total

    def signed(self) -> Fraction:
        negative = False
        while sign := self.take("+", "-"):
            negative = negative != (sign == "-")
        return -self.power() if negative else self.power()

    def power(self) -> Fraction:
        base = self.percent()
        if not self.take("^", "**"):
            return base
        self.depth += 1
        exponent = self.signed() if self.depth <= MAX_DEPTH else Fraction(1, 2)
        self.depth -= 1
        if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
            raise _NoValue
        return _bounded(base ** int(exponent))

    def percent(self) -> Fraction:
        number = self.primary()
        while self.take("%"):
            number /= 100
        return number

    def primary(self) -> Fraction:
        if self.take("("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise _NoValue
            inner = self.sum()
            self.depth -= 1
            if not self.take(")"):
                raise _NoValue
            return inner
        token = self.peek()
        if not token or token in "+-*/^**%)":
            raise _NoValue
        self.at += 1
        number = Fraction(token.rstrip(".") if token != "." else "0")
        return number + self.primary() if self.peek() == "(" else number


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > 20_000:
        raise _NoValue
    return number
