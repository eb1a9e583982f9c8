"""Canonical forms claim equality only where it holds."""

import random

from qwen_jax.grading.symbolic import numeric
from qwen_jax.grading.symbolic.canonical import Algebra
from qwen_jax.grading.symbolic.parse import parse
from qwen_jax.grading.symbolic.polynomials import TooLarge

LEAVES = ["1", "2", "3", "x", "y", r"\pi", "i", "e", r"\frac12", "4", "n"]
FORMS = ["({a}+{b})", "({a}-{b})", "({a})({b})", r"\frac{{{a}}}{{{b}}}", r"\sqrt{{{a}}}", "-({a})",
         r"\sin({a})", r"\cos({a})", r"\ln({a})", "e^{{{a}}}", "({a})^{{2}}", "({a})^{{-1}}",
         "({a})^{{1/2}}", "({a})^{{n}}", "({a})^{{2/3}}"]  # fmt: skip


def _expression(rng, depth):
    if depth == 0:
        return rng.choice(LEAVES)
    a, b = _expression(rng, depth - 1), _expression(rng, depth - 1)
    return rng.choice(FORMS).format(a=a, b=b)


def test_expressions_with_one_canonical_form_have_one_value():
    rng, first, equal = random.Random(0), {}, 0
    for _ in range(1500):
        text = _expression(rng, rng.choice([1, 1, 2]))
        tree = parse(text)
        try:
            form = Algebra().of(tree).spelled()
        except TooLarge:
            continue
        other = first.setdefault(form, tree)
        if other is not tree:
            equal += 1
            assert not numeric.differ(tree, other), text
    assert equal > 300  # otherwise the test says little


def test_certain_forms_are_equal_wherever_values_are():
    rng, trees = random.Random(1), []
    for _ in range(400):
        algebra, tree = Algebra(), parse(_expression(rng, 1))
        try:
            algebra.of(tree)
        except TooLarge:
            continue
        if algebra.certain:
            trees.append(tree)
    assert len(trees) > 100
    for first, second in zip(trees, trees[1:] + trees[:1], strict=True):
        algebra = Algebra()
        assert algebra.equal(first, second) == (numeric.differ(first, second) is False)
