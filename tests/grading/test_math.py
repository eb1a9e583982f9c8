"""Verdicts on pairs of answers written here; tests/grading/test_labelled.py has other people's."""

import itertools

import pytest

from qwen_jax.grading.math import grade, math_equal, readable
from qwen_jax.grading.symbolic import second_opinion

# gold, prediction: equal in both verdicts.
SAME = [
    ("0.001", "1e-3"),
    (r"6.02 \times 10^{23}", "6.02e23"),
    ("5", r"\text{5 cm}"),
    ("5\\ ", "5"),  # a space of TeX
    ("-3", r"\text{-3}"),
    ("420", "420.0"),
    ("10080", r"10,\!080"),
    ("10080", r"$10{,}080$."),
    ("11111111100", r"11,\! 111,\! 111,\! 100"),
    ("1000", "1 000"),
    ("12000000", "12 million"),
    ("-5", "−5"),
    ("18", "１８"),
    (r"\frac{3}{4}", "3/4"),
    (r"\frac{3}{4}", r"\frac34"),
    (r"\frac{270}{7}", r"\dfrac{270}7\text{ degrees}"),
    (r"1\frac{4}{5}", "1 4/5"),
    ("0.5", r"\frac12"),
    ("3.5", "3½"),
    (r"106^\circ", r"106^{\circ}"),
    (r"106^\circ", "106°"),
    ("106", r"106\text{ degrees}"),
    (r"15\mbox{ cm}^2", "15"),
    (r"864 \mbox{ inches}^2", "864 square inches"),
    ("3 cm^2", "3"),
    ("3 square cm", "3 cm²"),
    (r"3\text{ cubic meters}", "3 cubic metres"),
    ("5 cm squared", "5 sq cm"),
    (r"5\text{ m/s}", "5 m/s"),
    (r"5 \text{ m}/\text{s}", "5 meters per second"),
    (r"9.8\text{ m/s}^2", "9.8 meters per second squared"),
    ("60 km/h", r"60 \text{ kilometers per hour}"),
    ("30 mph", "30 miles per hour"),
    (r"\$18.90", "18.9"),
    (r"10\%", "10"),
    ("10", "10%"),
    ("28 percent", r"28\%"),
    (r"2\sqrt{113}", r"\sqrt{452}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt2"),
    (r"12\pi", "12π"),
    ("6+9i", "9i + 6"),
    (r"\frac{1}{1+i}", r"\frac{1-i}{2}"),
    ("(a+5)(b+2)", "ab+2a+5b+10"),
    ("x^3+3x-6", "-6 + x³ + 3x"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("2^{n+1}", r"2\cdot 2^n"),
    (r"\sin 2x", r"2\sin x\cos x"),
    (r"\cos 60^\circ", "1/2"),
    (r"\cot x", r"\frac{\cos x}{\sin x}"),
    (r"\ln 8", r"3 \ln 2"),
    ("e^{x+y}", "e^x e^y"),
    ("(3,4]", r"\left(3,4\right]"),
    (r"(2,\infty)", r"(2,+\infty)"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1-\sqrt5, 1+\sqrt5\}"),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
        r"\begin{bmatrix}-\frac13\\ \frac23\\\end{bmatrix}",
    ),
    ("4210_{5}", "4210_5"),
    ("x=5", "5"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"\text{(C)}", "C"),
    (r"\text{east}", "East"),
    (r"\frac{639}{40}", r"15\frac{39}{40} \text{ or } \frac{639}{40}"),
    ("10^{10^8}", "10^{100000000}"),
    (r"x \ge 5", "5 <= x"),
    ("x = 11", "x = 5 + 6 = 11"),
    ("3:4", r"a:b = 3:4"),
    (r"5^\circ", "5"),
    ("5", "5 degrees"),
    ("5:30 pm", "5:30 PM"),
    ("5:30 pm", "5:30p.m."),
    (r"10:05\text{ a.m.}", "$10:05$ am"),
    ("5:00 pm", "5 pm"),
    (r"\frac13", r"0.\overline{3}"),
    (r"0.1\overline{6}", r"\frac16"),
    (r"\frac17", r"0.\bar{142857}"),
    (r"\frac17", r"0.\dot{1}4285\dot{7}"),
    (r"\frac13", r"0.\dot3"),
    (r"\frac{3}{11}", "0.2̅7̅"),
    (r"\frac13", "0.(3)"),
    (r"\frac13", "0.333..."),
    (r"\frac16", r"0.1666\ldots"),
    (r"-\frac43 x", r"-1.\overline{3}x"),
    ("1", r"0.\overline{9}"),
]
# Equal as values, not in form: the lenient verdict only.
LENIENT = [
    ("1500", "1.5e3"),
    ("-300", "-3E+2"),
    (r"\frac12", r"\frac{2}{4}"),
    ("6", r"2 \cdot 3"),
    ("1", r"\sin^2 x + \cos^2 x"),
    (r"10\%", "0.1"),
    ("0.05", r"5\%"),
    ("0.05", "5 percent"),
    ("5:30 pm", "17:30"),
    ("12 pm", "noon"),
    ("0:15", "12:15 am"),
    ("y = 2x + 3", "2y - 4x = 6"),
    ("x < 3", r"(-\infty, 3)"),
    ("-793 < a < 10", "(-793, 10)"),
    (r"-2 \le x \le 7", r"x \in [-2,7]"),
    ("1, -2", "-2 and 1"),
    ("(1,2), (3,4)", "(3,4), (1,2)"),
    ("a_3 = 2, a_{37} = 19", "a_{37} = 19, a_3 = 2"),
]
DIFFERENT = [
    ("11/2", "1 1/2"),  # spaces between digits count
    ("34", "3 4"),
    ("2000", "2e^3"),
    ("1000x", "1e3x"),
    ("6", r"\text{5 cm}"),
    ("3", "4"),
    ("-5", "5"),
    ("20", "2000"),
    ("20", r"20000\%"),
    (r"20\%", "2000"),
    ("5:30 pm", "5:30 am"),
    ("5:30 pm", "5:30"),
    ("5:30", "5:30 am"),
    ("5:30 pm", "5:31 pm"),
    ("13:30 pm", "1:30 pm"),
    ("5:75 pm", "6:15 pm"),
    (r"5^\circ", "6"),
    ("0.3", r"0.\overline{3}"),
    ("0.333", r"0.\overline{3}"),
    (r"0.\overline{3}", r"0.\overline{33}4"),
    ("e", "2.718281828..."),
    ("0.333", r"\frac13"),
    (r"\sqrt2", "1.41421356"),
    ("(3,1)", "(1,3)"),
    ("(3,1)", "3,1"),
    ("(3,4]", "[3,4)"),
    ("(1,234)", "1234"),
    ("32349", "32, 349"),
    ("10, 4, -2", "4, 10, -2"),
    ("x=5", "-x=5"),
    ("x=5", "y=5"),
    ("2x + z = 1", "1"),
    (r"x \ge 5", r"x \le 5"),
    ("(a+5)(b+2)", "(+5)(b+2)"),
    (r"1 - \frac{1}{e}", r"1 + \frac1e"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"\sqrt{4+2\sqrt2}", r"1+\sqrt3"),
    ("e^{\\pi\\sqrt{163}}", "262537412640768744"),  # they agree to 30 digits
    ("204_5", "54"),
    ("5 cm", "5 km"),
    ("15 cm^2", "15 cm^3"),
    ("3 cm^2", "3 cm"),
    ("3 cm", "3 cm²"),
    ("-3 cm", "-3 cm^2"),
    (r"3\text{ cm}^2", r"3\text{ cm}"),
    ("3 square cm", "3 cm"),
    ("3 units", "3 square units"),
    ("3 cubic meters", "3 square meters"),
    ("3 m/s", "3 m"),
    ("3 cm", "3 cm/s"),
    ("3 m/s", "3 m/s^2"),
    ("3 km/h", "3 km/s"),
    ("3 miles per hour", "3 miles"),
    (r"\text{east}", "least"),
    ("2", "AZYUK2A"),
    ("5", ""),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    ("1, 2, 3", "1, 2"),
    ("5", "5 or 6"),
    (r"\frac10", r"\frac20"),
]


@pytest.mark.parametrize("gold, prediction", SAME)
def test_math_equal_accepts_the_same_answer(gold, prediction):
    assert math_equal(prediction, gold, strict=True), grade(prediction, gold, strict=True)
    assert math_equal(prediction, gold), grade(prediction, gold)


@pytest.mark.parametrize("gold, prediction", LENIENT)
def test_math_equal_accepts_another_form_unless_strict(gold, prediction):
    assert math_equal(prediction, gold), grade(prediction, gold)
    assert not math_equal(prediction, gold, strict=True), grade(prediction, gold, strict=True)


@pytest.mark.parametrize("gold, prediction", DIFFERENT)
def test_math_equal_refuses_another_answer(gold, prediction):
    for strict in (False, True):
        assert not math_equal(prediction, gold, strict=strict), grade(prediction, gold)


def test_grade_names_the_rule_that_decided():
    assert grade("5", "5").rule == "identical"
    assert grade("0.5", r"\frac12").rule == "exact"
    assert grade("6", "5").rule == "different values"
    assert grade("2/4", "1/2", strict=True).rule.startswith("strict: fractions")
    assert grade("(1,2)", "[1,2]").rule == "different brackets"


def test_grade_without_sympy_says_that_it_is_undecided(monkeypatch):
    gold, prediction = r"\frac{\pi}{4}", r"\arctan 1"
    monkeypatch.setattr(second_opinion, "installed", lambda: False)
    assert grade(prediction, gold) == (False, "undecided: sympy is not installed")


def test_sympy_decides_what_the_own_algebra_does_not():
    pytest.importorskip("sympy")
    assert grade(r"\arctan 1", r"\frac{\pi}{4}") == (True, "sympy")
    # Values that differ numerically do not get that far.
    assert grade(r"\arctan 2", r"\frac{\pi}{4}") == (False, "different values")


def test_sympy_is_loaded_once_and_says_so():
    pytest.importorskip("sympy")
    second_opinion._warm_up.cache_clear()
    lines = []
    for _ in range(2):
        second_opinion.load(lines.append)
    assert lines == ["loading sympy, the second opinion on mathematical answers ..."]


@pytest.mark.parametrize("text", ["5", r"\frac{1}{2}", "x = 3, y = 4", "5:30 p.m.", "Answer"])
def test_readable_tells_answers_from_sentences(text):
    assert readable(text) == (text != "Answer")
    assert not readable(f"so we find {text}")


@pytest.mark.parametrize(
    "text",
    ["I get -5 there", "I get 5 there", "so -5", "is 5", "-5 now", r"so -\frac{1}{2}", "so x = 5"],
)
def test_readable_refuses_a_short_sentence_with_a_number(text):
    assert not readable(text)


@pytest.mark.parametrize("text", ["ab - 5", "abc", "xyz = -3", "2ab - 5", "5 apples", "3 - 5 in"])
def test_readable_accepts_products_of_letters_and_what_is_counted(text):
    assert readable(text)


# Pieces that make sense alone and nonsense together.
PIECES = (
    r"1 , ( ) [ ] \{ \} { } \frac \sqrt ^ _ ! % | \pm \cup x \sin \text{and} = < : & \\ +".split()
)


def test_grade_never_raises_on_nonsense():
    """Every pair of the pieces, as an answer and as the gold answer."""
    for pieces in itertools.product(PIECES, repeat=2):
        text = "2" + " ".join(pieces) + "3"
        assert isinstance(grade("".join(pieces), "1").equal, bool)
        assert isinstance(grade(text, text + "+0").equal, bool)
