"""What the rules extract, and which rule it was."""

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.grading.extract import extract, extract_answer, lm_eval_normalized

CASES = [
    # text, kind, answer, rule
    (r"\boxed{\frac{1}{2}} and $\boxed{3}$.", "boxed", r"\frac{1}{2} \text{ and } 3", "box"),
    (r"$n = \boxed{1} \quad\text{and}\quad m = \boxed{3}$", "boxed", r"1 \text{ and } 3", "box"),
    (r"first \boxed{1}. But wait, it is \boxed{3}.", "boxed", "3", "box"),
    (r"\boxed{\text{(a \{ b)}}", "boxed", r"\text{(a \{ b)}", "box"),
    (r"\boxed{\text{open}", "boxed", None, "no box"),
    ("no box", "boxed", None, "no box"),
    (r"it is \fbox{7}", "math", "7", "box"),
    (
        "Final Answer: The final answer is $5$. I hope it is correct.",
        "math",
        "$5$",
        "minerva phrase",
    ),
    ("Thus the answer is 3.5. Done", "math", "3.5", "phrase"),
    ("The answer is: the largest $n$ is 34.", "math", "34", "phrase"),
    (r"We find \( x=3 \) here", "math", "x=3", "weak: last formula"),
    ("that costs $5 more, 12 in all", "math", "12", "weak: last number"),
    ("They meet at 5:30 p.m.", "math", "5:30 p.m.", "weak: last time of day"),
    ("The answer is 5:30 p.m.", "math", "5:30 p.m", "phrase"),
    ("I get -5 there", "math", "-5", "weak: last number"),
    ("I get −5 there.", "math", "−5", "weak: last number"),
    (r"I get -\frac{1}{2} there", "math", r"-\frac{1}{2}", "weak: last formula"),
    ("a change of -$5.50 there", "math", "-$5.50", "weak: last number"),
    ("The answer is -5 now", "math", "-5", "phrase"),
    ("pages 3-5 there", "math", "5", "weak: last number"),
    ("I get -5 there", "math401", "-5", "last number"),
    ("a change of −$5.50 there", "math401", "-5.50", "last number"),
    ("from $3$-$5$", "math401", "5", "last number"),
    ("I get -5 there", "gsm8k_chat", "-5", "last number"),
    ("I get -5 there", "gsm8k_flexible", "-5", "last number"),
    ("From 3 pm on, 12 in all", "math", "12", "weak: last number"),
    (r"The answer is $0.\overline{3}$.", "math", r"0.\overline{3}", "phrase"),
    ("1 and 2", "math", "1 and 2", "whole text"),
    ("I do not know.", "math", None, "no answer"),
    ("a. Final Answer: The final answer is 5. I hope it is correct.", "minerva", "5", "phrase"),
    ("Final Answer: The final answer is\n5. I hope it is correct.", "minerva", None, "no phrase"),
    ("so $a$ and $b$ hold", "hendrycks_math", "a$ and $b", "dollar signs"),
    ("it costs 1,234", "gsm8k", "234", "last digits"),
    ("it costs 12.0", "gsm8k", "0", "last digits"),
    ("agent 007", "gsm8k", None, "last digits are no integer"),
    ("it costs 1,234.50 dollars", "gsm8k_chat", "1234.50", "last number"),
    ("it is -7", "gsm8k_chat", "-7", "last number"),
    ("x\n#### 1,234", "gsm8k_strict", "1,234", "####"),
    ("the answer is 5", "gsm8k_strict", None, "no ####"),
    ("it is $1,234.", "gsm8k_flexible", "$1,234.", "last number"),
    ("3 + 4. The answer is 7, not 8", "math401", "7", "phrase"),
    ("of 3 and 4 it is 7", "math401", "7", "last number"),
    ("一共有３个，答案是８０％。", "math23k", "80%", "phrase"),
    ("答案是5又7/10米", "math23k", "5又7/10", "phrase"),
    ("所以一共是三十五个", "math23k", "三十五", "last number"),
    ("CO2 is a gas", "math23k", None, "no number"),
    ("The answer is −5", "math401", "-5", "phrase"),
    ("The answer is 1.5e-3.", "math401", "1.5e-3", "phrase"),
    ("x = −7 here", "math401", "-7", "last number"),
    ("from 3–5", "math401", "5", "last number"),
    ("the answer is -(2/3)", "math401", "-(2/3)", "phrase"),
    ("The answer is 2 + 3 = 5, or 6", "math401", "5", "phrase"),
    ("The answer is 12, as 3 * 4 = 11 + 1", "math401", "12", "phrase"),
    (r"答案是$\frac{2}{3}$", "math23k", "((2)/(3))", "phrase"),
    ("答案是——5", "math23k", "5", "phrase"),  # a dash
    ("答案是负5", "math23k", "-5", "phrase"),
    ("答案是5又2分之1", "math23k", "5又(1)/(2)", "phrase"),
    ("It is −5 now.", "math", "−5", "weak: last number"),
    (r"The answer is $\$5.00$.", "math", r"\$5.00", "phrase"),
    ("So the answer is (A).\n\nQ: the answer is (B)", "bbh", "(A)", "phrase"),
    ("] ]", "bbh", "] ]", "whole text"),
    ("the answer is True.", "bbh_lm_eval", "True", "phrase"),
    ("the answer is True", "bbh_lm_eval", "Tru", "phrase"),
]


@pytest.mark.parametrize("text, kind, answer, rule", CASES)
def test_extract_finds_answer_and_rule(text, kind, answer, rule):
    found = extract(text, kind)
    assert found == (answer, rule)
    assert extract_answer(text, kind=kind) == answer


def test_extract_names_the_known_kinds():
    with pytest.raises(ConfigError, match="did you mean 'boxed'"):
        extract("5", "boxd")


def test_lm_eval_normalized_ignores_what_lm_eval_ignores():
    assert lm_eval_normalized("text\n#### $1,234.") == "1234"
