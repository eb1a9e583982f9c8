"""Exact match of short answers."""

import pytest

from qwen_jax.grading.open_answers import exact_match, normalized


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Bell, and a Rope.", "bell and rope"),
        ("Anna's", "annas"),
        ("theater of an age", "theater of age"),
        ("the", ""),
        ("Caf\u00e9", "cafe\u0301"),  # accents are separated
        ("15 May", "15 may"),
    ],
)
def test_normalized(text, expected):
    assert normalized(text) == expected


def test_exact_match_needs_one_of_the_answers():
    assert exact_match(" the Cafe\u0301! ", ["tea house", "Caf\u00e9"])
    assert not exact_match("Cafe", ["Caf\u00e9"])
    assert not exact_match("in the cafe", ["cafe"])
    assert not exact_match("the", ["a"]) and not exact_match("", [""])  # nothing is no answer
