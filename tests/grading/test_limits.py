"""Input that is made to be slow: the work is bounded, so that no verdict needs a clock.

A verdict here takes a second at most; the tests have no limit of their own.
"""

import pytest

from qwen_jax.grading import choices
from qwen_jax.grading.extract import KINDS, extract
from qwen_jax.grading.math import grade
from qwen_jax.grading.symbolic import polynomials, second_opinion
from qwen_jax.grading.symbolic.canonical import Algebra
from qwen_jax.grading.symbolic.parse import parse

N = 100_000  # characters
LONG = {
    "digits": "9" * N,
    "brackets": "(" * N,
    "braces": "{" * N,
    "fractions": r"\frac" * (N // 5),
    "boxes": r"\boxed{" * (N // 7),
    "joined boxes": r"\boxed{1} and " * (N // 14),
    "dollars": "$1$ " * (N // 4),
    "formulas": r"\( 1 \) " * (N // 8),
    "open formulas": r"\(" * (N // 2),
    "phrases": "the answer is " * (N // 14),
    "minerva": "Final Answer: The final answer is " * (N // 34),
    "commas": "123," * (N // 4),
    "newlines": "\n" * N,
    "numerals": "百分之" * (N // 3),
    "letters": "A " * (N // 2),
    "choose": "choose not " * (N // 11),
}
BOMBS = {
    "nesting": "(" * 400 + "1" + ")" * 400,
    "fraction bomb": r"\frac{1}{" * 150 + "1" + "}" * 150,
    "tower": "9^{9^{9^{9^9}}}",
    "power": "10^{10^8}",
    "python power": "10**10**8",
    "factorial": "99999999!",
    "factorials": "1" + "!" * 1500,
    "roots": r"\sqrt{2+" * 15 + "2" + "}" * 15,
    "expansion": "(a+b+c+d+e+f)^{12}(a+b)^{20}",
    "product": "".join(f"(x_{{{i}}}+1)" for i in range(80)),
    "denominators": "+".join(rf"\frac{{1}}{{{10**15 + i}}}" for i in range(90)),
    "powers": "+".join(f"{i + 3}^{{-400}}" for i in range(150)),
    "root powers": r"(\sqrt{x+1}+\sqrt{x+2}+\sqrt{x+3}+\sqrt{x+4})^{30}",
    "trigonometry": "+".join(rf"\sin^{{{k}}} x" for k in range(2, 20)),
    "large primes": rf"\sqrt{{{(10**9 + 7) * (10**9 + 9) * 999999999989}}}",
    "signs": "-" * 1500 + "1",
    "plus or minus": "1" + r"\pm 1" * 200,
    "matrices": r"\begin{pmatrix}" * 100,
    "list": ",".join("1" * 900),
}
OPTIONS = {"A": "Paris", "B": "London", "C": "Rome", "D": "Madrid", "question": "法国的首都是____"}


@pytest.mark.parametrize("name", LONG)
def test_extract_reads_100_kilobytes(name):
    for kind in (*KINDS, *choices.CASCADES):
        answer, rule = extract(LONG[name], kind, options=OPTIONS)
        assert rule and (answer is None or isinstance(answer, str))


@pytest.mark.parametrize("name", sorted(LONG.keys() - {"newlines"}))
def test_grade_refuses_100_kilobytes(name):
    assert grade(LONG[name], "1") == (False, "longer than 2000 characters")
    assert grade(LONG[name], LONG[name]).equal


@pytest.mark.parametrize("name", BOMBS)
def test_grade_bounds_its_work(name):
    for gold in ("17", "x+1", BOMBS[name].replace("1", "2") + "+1"):
        assert not grade(BOMBS[name], gold).equal


def test_algebra_counts_its_steps(monkeypatch):
    product = parse("(x+1)(x+2)(x+3)(x+4)")
    Algebra().of(product)
    monkeypatch.setattr(polynomials, "MAX_STEPS", 10)
    with pytest.raises(polynomials.TooLarge, match="steps"):
        Algebra().of(product)


def test_sympy_stops_at_its_budget(monkeypatch):
    pytest.importorskip("sympy")
    first, second = parse(r"\arctan 1"), parse(r"\frac{\pi}{4}")
    assert second_opinion.equal(first, second) is True
    monkeypatch.setattr(second_opinion, "MAX_CALLS", 50)
    assert second_opinion.equal(first, second) is None
