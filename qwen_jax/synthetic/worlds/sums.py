"""Arithmetic as in Math401 (report 5.2): six levels, with and without steps, in two languages.

Steps go from the last digit to the first, since a carry is then known before it is needed.
"""

import fractions

import numpy as np

from qwen_jax.synthetic.worlds.problem import Problem, check_level

LEVELS = (
    "one digit",  # a + b and a - b, also below zero
    "two digits",
    "three digits",
    "times one digit",  # a two-digit number times a digit
    "brackets",  # (a + b) * c and the like
    "decimals",  # one decimal place, and percentages
)
_PHRASINGS = {  # language -> (questions, final punctuation of a response)
    "en": (("What is {}?", "Compute {}.", "{} = ?", "How much is {}?"), "."),
    "zh": (("{} 等于多少？", "请计算 {}。", "{} = ？", "算一下 {}。"), "。"),
}


def make(rng: np.random.Generator, level: str, language: str) -> Problem:
    """Returns a random problem of a level of LEVELS, in English (en) or Chinese (zh)."""
    check_level(level, LEVELS, "sums.make(level)")
    expression, steps, result = _EXPRESSIONS[level](rng)
    forms, end = _PHRASINGS[language]
    separator = "; " if language == "en" else "；"
    shown = text_of(result)
    return Problem(
        question=forms[rng.integers(len(forms))].format(expression),
        answer=f"{expression} = {shown}{end}",
        steps=separator.join([*steps, f"{expression} = {shown}"]) + end,
        wrong=f"{expression} = {text_of(wrong_result(result, rng))}{end}",
        result=shown,
        level=level,
        language=language,
        key=_key(expression),
    )


def text_of(value: fractions.Fraction | int) -> str:
    """Returns a number as people write it: 12, -3, 4.5."""
    value = fractions.Fraction(value)
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def wrong_result(
    result: fractions.Fraction | int, rng: np.random.Generator
) -> fractions.Fraction | int:
    """Returns a plausible wrong result: off by 1, 2 or 10, or with two digits exchanged."""
    digits = str(abs(result))
    if digits.isdigit() and len(digits) > 1 and digits[-1] != digits[-2] and rng.random() < 0.2:
        exchanged = int(digits[:-2] + digits[-1] + digits[-2])
        return exchanged if result >= 0 else -exchanged
    return result + int(rng.choice([-10, -2, -1, 1, 2, 10]))


def _key(expression: str) -> str:
    """Returns the same key for a + b and b + a, and for a * b and b * a."""
    parts = expression.split(" ")
    if len(parts) == 3 and parts[1] in "+*":
        return " ".join([parts[1], *sorted((parts[0], parts[2]))])
    return expression


def _add_or_subtract(rng: np.random.Generator, largest: int):
    a, b = (int(x) for x in rng.integers(0, largest + 1, 2))
    if rng.random() < 0.5:
        return f"{a} + {b}", addition_steps(a, b), a + b
    return f"{a} - {b}", subtraction_steps(a, b), a - b


def addition_steps(a: int, b: int) -> list[str]:
    """Returns the columns of a + b from the last digit; a carry is the third number of a column.

    Sums of two digits have no steps.
    """
    if max(a, b) < 10:
        return []
    steps, carry = [], 0
    for x, y in zip(*_columns(a, b), strict=True):
        total = x + y + carry
        steps.append(f"{x} + {y}" + (f" + {carry}" if carry else "") + f" = {total}")
        carry = total // 10
    return steps


def subtraction_steps(a: int, b: int) -> list[str]:
    """Returns the columns of a - b; for a < b those of b - a, whose negative is the result."""
    if a < b:
        return [f"{b} - {a} = {b - a}"] if b < 10 else [*subtraction_steps(b, a), f"-{b - a}"]
    if a < 10:
        return []
    steps, borrow = [], 0
    for x, y in zip(*_columns(a, b), strict=True):
        top = x - borrow
        lent = 10 if top < y else 0
        steps.append(f"{top + lent} - {y} = {top + lent - y}")
        borrow = int(lent > 0)
    return steps


def _columns(a: int, b: int) -> tuple[list[int], list[int]]:
    """Returns the digits of both numbers from the last to the first, equally many."""
    width = max(len(str(a)), len(str(b)))
    digits = [[int(d) for d in reversed(str(n).zfill(width))] for n in (a, b)]
    return digits[0], digits[1]


def _times(rng: np.random.Generator):
    a, b = int(rng.integers(2, 100)), int(rng.integers(2, 10))
    tens, ones = divmod(a, 10)
    if not tens:
        return f"{a} * {b}", [], a * b
    steps = [f"{ones} * {b} = {ones * b}", f"{10 * tens} * {b} = {10 * tens * b}"]
    return f"{a} * {b}", steps, a * b


def _brackets(rng: np.random.Generator):
    a, b, c = (int(x) for x in rng.integers(1, 21, 3))
    inner = f"{a} + {b}" if rng.random() < 0.5 else f"{max(a, b)} - {min(a, b)}"
    value = a + b if "+" in inner else abs(a - b)
    outer = str(rng.choice(["*", "+", "-"]))
    if outer == "*":
        c = c % 9 + 1
    result = {"*": value * c, "+": value + c, "-": value - c}[outer]
    steps = [f"{inner} = {value}", f"{value} {outer} {c} = {result}"]
    return f"({inner}) {outer} {c}", steps, result


def _decimals(rng: np.random.Generator):
    if rng.random() < 0.3:
        percent, whole = int(rng.choice([5, 10, 20, 25, 50, 75])), 20 * int(rng.integers(1, 26))
        result = fractions.Fraction(percent * whole, 100)
        steps = [f"{whole} * {percent} = {percent * whole}"]
        return f"{percent}% * {whole}", steps, result
    a, b = (int(x) for x in rng.integers(1, 100, 2))
    x, y = (text_of(fractions.Fraction(n, 10)) for n in (a, b))
    if rng.random() < 0.5:
        return f"{x} + {y}", [f"{a} + {b} = {a + b}"], fractions.Fraction(a + b, 10)
    return f"{x} - {y}", [f"{a} - {b} = {a - b}"], fractions.Fraction(a - b, 10)


_EXPRESSIONS = {
    "one digit": lambda rng: _add_or_subtract(rng, 9),
    "two digits": lambda rng: _add_or_subtract(rng, 99),
    "three digits": lambda rng: _add_or_subtract(rng, 999),
    "times one digit": _times,
    "brackets": _brackets,
    "decimals": _decimals,
}
