"""Minerva's normalization of answers; test_lm_eval_protocol.py compares it with lm-eval's."""

import pytest

from qwen_jax.grading.minerva import normalize


@pytest.mark.parametrize(
    "answer, normalized",
    [
        (r"x = \frac12 \text{ cm}", r"\frac{1}{2}"),
        ("an integer of 1,000 dollars", "integerof1,000"),
        ("1,000 dollars", "1000"),
        ("0,1", "0,1"),  # a pair, not a number
        (r"\left(1, 2\right)", r"\left(1,2\right)"),  # no feet
        (r"it is $\sqrt3$ or so", r"\sqrt{3}"),
        (r"\sqrt[3]8", r"\sqrt[3]{8}"),
        (r"90^\circ", "90"),
        (r"\boxed{\text{east}}", "east"),
        (r"12\mbox{ m}", "12"),
        ("", ""),
    ],
)
def test_normalize(answer, normalized):
    assert normalize(answer) == normalized
