"""Repetition and diversity of texts, counted by hand."""

import pytest

from qwen_jax.grading.repetition import distinct, ended_share, repetition, summary, words


def test_words_are_words_chinese_characters_and_marks():
    assert words("It's 3.5 元，好的") == ["It", "'", "s", "3", ".", "5", "元", "，", "好", "的"]


def test_repetition_is_the_share_of_repeated_ngrams():
    # abab bab aba ...: of the 5 four-grams of a b a b a b a b, 2 are different.
    assert repetition("a b a b a b a b") == pytest.approx(3 / 5)
    assert repetition("a b c d e f g h") == 0.0
    assert repetition("哈" * 10) == pytest.approx(6 / 7)
    assert repetition("a b c") == 0.0


def test_distinct_counts_over_all_texts():
    assert distinct(["a b", "a c"], 1) == pytest.approx(3 / 4)
    assert distinct(["a b", "a b"], 2) == pytest.approx(1 / 2)
    assert distinct([], 2) == 0.0


def test_summary_has_the_share_that_ended():
    found = summary(["a b a b a b a b", "a b c d e", "a"], ["length", "stop", "eos"])
    assert found.texts == 3 and found.ended == pytest.approx(2 / 3)
    assert found.repetition_4 == pytest.approx(0.2)
    assert ended_share([]) == 0.0
