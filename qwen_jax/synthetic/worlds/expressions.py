"""Expressions over x, y and small constants: their values, and their words in two languages.

An expression is a tree: "x", "y", an integer, or (operator, left, right) with + - * or min, max.
"""

from typing import Any

import numpy as np

Expression = Any  # "x" | "y" | int | tuple[str, Expression, Expression]

OPERATORS = ("+", "-", "*", "min", "max")
# Three phrasings in English, two in Chinese.
_WORDS = {
    "en": (
        {
            "+": "the sum of {0} and {1}",
            "-": "the difference of {0} and {1}",
            "*": "the product of {0} and {1}",
            "min": "the smaller of {0} and {1}",
            "max": "the larger of {0} and {1}",
        },
        {
            "+": "{0} plus {1}",
            "-": "{0} minus {1}",
            "*": "{0} times {1}",
            "min": "the minimum of {0} and {1}",
            "max": "the maximum of {0} and {1}",
        },
        {
            "+": "{0} increased by {1}",
            "-": "{0} decreased by {1}",
            "*": "{0} multiplied by {1}",
            "min": "whichever of {0} and {1} is smaller",
            "max": "whichever of {0} and {1} is larger",
        },
    ),
    "zh": (
        {
            "+": "{0}与{1}的和",
            "-": "{0}与{1}的差",
            "*": "{0}与{1}的积",
            "min": "{0}和{1}中较小的数",
            "max": "{0}和{1}中较大的数",
        },
        {
            "+": "{0}加{1}",
            "-": "{0}减{1}",
            "*": "{0}乘以{1}",
            "min": "{0}和{1}的最小值",
            "max": "{0}和{1}的最大值",
        },
    ),
}


def phrasings(language: str) -> int:
    """Returns the number of phrasings of a language."""
    return len(_WORDS[language])


def random_expression(rng: np.random.Generator, operators: int) -> Expression:
    """Returns a random expression with this many operators; x appears at least once."""
    while True:
        tree = _random(rng, operators)
        if "x" in leaves(tree):
            return tree


def _random(rng: np.random.Generator, operators: int) -> Expression:
    if not operators:
        kind = rng.random()
        return "x" if kind < 0.45 else "y" if kind < 0.7 else int(rng.integers(1, 10))
    left = int(rng.integers(operators))
    operator = str(rng.choice(OPERATORS, p=(0.28, 0.28, 0.24, 0.1, 0.1)))
    first, second = _random(rng, left), _random(rng, operators - 1 - left)
    while first == second:
        second = _random(rng, operators - 1 - left)
    return (operator, first, second)


def leaves(tree: Expression) -> list[Expression]:
    """Returns the variables and constants, from left to right."""
    if not isinstance(tree, tuple):
        return [tree]
    return [leaf for part in tree[1:] for leaf in leaves(part)]


def value(tree: Expression, x: int, y: int) -> int:
    """Returns the value of an expression at a point."""
    if isinstance(tree, str):
        return x if tree == "x" else y
    if isinstance(tree, int):
        return tree
    operator, left, right = tree[0], value(tree[1], x, y), value(tree[2], x, y)
    if operator in ("min", "max"):
        return (min if operator == "min" else max)(left, right)
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def words(tree: Expression, language: str, phrasing: int) -> str:
    """Returns an expression in words; a part with operators of its own is put in brackets."""
    if not isinstance(tree, tuple):
        return str(tree)
    parts = [words(part, language, phrasing) for part in tree[1:]]
    parts = [f"({part})" if isinstance(tree[i], tuple) else part for i, part in enumerate(parts, 1)]
    return _WORDS[language][phrasing][tree[0]].format(*parts)


def code(tree: Expression, programming: str, *, outer: bool = True) -> str:
    """Returns an expression in Python or JavaScript.

    Args:
      programming: "python" or "javascript".
      outer: whether nothing surrounds it; otherwise it is put in brackets where needed.
    """
    if not isinstance(tree, tuple):
        return str(tree)
    operator = tree[0]
    if operator in ("min", "max"):
        name = operator if programming == "python" else f"Math.{operator}"
        return f"{name}({code(tree[1], programming)}, {code(tree[2], programming)})"
    text = f" {operator} ".join(code(part, programming, outer=False) for part in tree[1:])
    return text if outer else f"({text})"


def mutant(tree: Expression, rng: np.random.Generator) -> Expression:
    """Returns the expression with one operator changed: what good tests must find."""
    positions = _operators(tree)
    position = positions[rng.integers(len(positions))]
    return _changed(tree, position, rng)


def _operators(tree: Expression, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    if not isinstance(tree, tuple):
        return []
    inner = [each for i in (1, 2) for each in _operators(tree[i], (*path, i))]
    return [path, *inner]


def _changed(tree: Expression, path: tuple[int, ...], rng: np.random.Generator) -> Expression:
    if path:
        parts = list(tree)
        parts[path[0]] = _changed(tree[path[0]], path[1:], rng)
        return tuple(parts)
    others = [operator for operator in OPERATORS if operator != tree[0]]
    return (others[rng.integers(len(others))], *tree[1:])


def shape(tree: Expression) -> str:
    """Returns the operators' tree without its variables and constants, such as +(-(.,.),.)."""
    if not isinstance(tree, tuple):
        return "."
    return f"{tree[0]}({shape(tree[1])},{shape(tree[2])})"
