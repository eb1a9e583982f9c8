"""Numbers in answers, and the comparisons of GSM8K, Math23K and Math401."""

from fractions import Fraction

import pytest

from qwen_jax.grading import arithmetic, numbers

VALUES = [
    ("1,234.50", "1234.5"),
    ("-7", "-7"),
    (".5", "0.5"),
    ("42.", "42"),
    ("1/3", "1/3"),
    ("((2)/(3))", "2/3"),
    ("5((7)/(10))", "5.7"),
    ("5又7/10", "5.7"),
    ("-5又7/10", "-5.7"),
    ("80%", "0.8"),
    ("８０％", "0.8"),
    ("三十五", "35"),
    ("一百零二", "102"),
    ("十", "10"),
    ("两万三千", "23000"),
    ("一亿二千万", "120000000"),
    ("二〇二三", "2023"),
    ("十二点五", "12.5"),
    ("负三", "-3"),
    ("百分之八十", "0.8"),
    ("三分之二", "2/3"),
    ("一又三分之二", "5/3"),
    ("−7", "-7"),  # a minus sign
    ("1.5e-3", "0.0015"),
    ("1.2 × 10^5", "120000"),
    (r"3 \times 10^{-2}", "0.03"),
    ("10²", "100"),
    ("1½", "1.5"),
    ("2 1/3", "7/3"),
    (r"-1\frac{1}{2}", "-1.5"),
    (r"−\dfrac23", "-2/3"),
    (r"50\%", "0.5"),
    ("1{,}234", "1234"),
    ("负5", "-5"),
    ("百分之25", "0.25"),
    ("5又3分之2", "17/3"),
]


@pytest.mark.parametrize("text, value", VALUES)
def test_number_reads(text, value):
    assert numbers.number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "x", "1,23", "1 2", "1/0", "--", "十点", "nan", "1e", "1e5.5"]
)
def test_number_refuses(text):
    assert numbers.number(text) is None


@pytest.mark.parametrize(
    "equation, value",
    [
        ("x=3.14*[(3+2)^2-3^2]", "50.24"),
        ("x=9*0.8/(1+20%)", "6"),
        ("x=2^3^2", "512"),  # from the right
        ("x=-2^2", "-4"),
        ("x=8/2/2", "2"),
    ],
)
def test_value_computes_equations(equation, value):
    assert arithmetic.value(equation) == Fraction(value)


@pytest.mark.parametrize("text", ["x=(1", "x=1)", "2^1000", "(" * 900, "9" * 900, "2^0.5", ""])
def test_value_refuses(text):
    assert arithmetic.value(text) is None


def test_math23k_equal_accepts_a_percent_only_for_a_percent():
    assert numbers.math23k_equal("0.8", "80%")
    assert numbers.math23k_equal("80%", "80%")
    assert not numbers.math23k_equal("80%", "0.8")
    assert not numbers.math23k_equal("80", "80%")
    assert numbers.math23k_equal("5.7", "5((7)/(10))")
    assert not numbers.math23k_equal("3.5", "5((7)/(10))")


def test_math23k_equal_is_relative():
    assert numbers.math23k_equal("0.66667", "((2)/(3))")
    assert not numbers.math23k_equal("0.6665", "((2)/(3))")
    assert not numbers.math23k_equal("0.0001", "0.0002")


def test_math401_equal_is_absolute():
    assert numbers.math401_equal("0.8631", "0.8639")
    assert not numbers.math401_equal("0.8631", "0.8641")
    assert not numbers.math401_equal(None, "0")
    assert numbers.relative_error("1,100", "1000") == pytest.approx(0.1)
    assert numbers.relative_error(None, "0") == numbers.relative_error("99", "1") == 10.0


def test_gsm8k_equal_has_a_small_tolerance():
    assert numbers.gsm8k_equal("42.", "42") and numbers.gsm8k_equal("3.00005", "3")
    assert not numbers.gsm8k_equal("3.001", "3") and not numbers.gsm8k_equal(None, "3")


def test_last_number_skips_digits_of_names():
    assert numbers.last_number("from 16-3 to CO2") == "3"
    assert numbers.last_number("v1.2") is None
