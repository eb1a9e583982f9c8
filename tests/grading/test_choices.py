"""Letters of chat answers: protocol qwen's cascade, and ours, which abstains."""

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.grading.choices import capitals, choose, exam_answers
from qwen_jax.grading.fuzzy import similarity

ENGLISH = {"A": "Paris", "B": "London", "C": "Rome", "D": "Madrid"}
CHINESE = {
    "A": "巴黎",
    "B": "伦敦",
    "C": "罗马",
    "D": "马德里",
    "question": "我们知道。法国的首都是哪里",
}

CASES = [
    ("The answer is B.", "B", "answer is X"),
    ("choose the option D", "D", "answer is X"),
    ("The answer is not A. C is right.", "C", "X is correct"),
    ("B. London", "B", "leading letter"),
    ("I would go with (C), clearly", "C", "first letter"),
    ("it should be madrid", "D", "first letter"),
    ("the answer is london", "B", "answer is X"),
]


@pytest.mark.parametrize("text, letter, rule", CASES)
def test_choose_reads_english_answers(text, letter, rule):
    assert choose(text, ENGLISH, "mmlu_chat") == (letter, rule)
    assert choose(text, ENGLISH, "mmlu_chat_strict") == (letter, rule)


@pytest.mark.parametrize(
    "text, letter, rule",
    [
        ("答案：C", "C", "答案是X"),
        ("选项D不正确，A正确。", "A", "X正确"),
        ("（C）", "C", "leading letter"),
        ("我认为是巴黎。", "A", "first letter"),
        ("法国的首都是哪里罗马", "C", "答案是X"),
    ],
)
def test_choose_reads_chinese_answers(text, letter, rule):
    assert choose(text, CHINESE, "ceval_chat") == (letter, rule)


def test_choose_guesses_by_similarity_only_in_protocol_qwen():
    assert choose("maybe Londn", ENGLISH, "mmlu_chat") == ("B", "most similar")
    assert choose("maybe Londn", ENGLISH, "mmlu_chat_strict") == (None, "abstained")


def test_choose_strict_does_not_take_the_article_for_a_letter():
    text = "A common mistake is to think of the south."
    assert choose(text, ENGLISH, "mmlu_chat")[0] == "A"
    assert choose(text, ENGLISH, "mmlu_chat_strict") == (None, "abstained")
    assert choose("A is correct", ENGLISH, "mmlu_chat_strict") == ("A", "X is correct")
    assert choose("A", ENGLISH, "mmlu_chat_strict") == ("A", "leading letter")


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ("fuzzy", "Fuzzy!", 100.0),  # case and punctuation
        ("abcd", "abce", 75.0),  # 2 * 3 / 8
        ("word order", "order word", 95.0),  # sorted words, with a discount
        ("a long text with the choice inside it", "choice", 90.0),  # a part
        ("", "choice", 0.0),
    ],
)
def test_similarity_is_the_weighted_ratio(first, second, expected):
    assert similarity(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "count", "text", "letters"),
    [
        ("single_choice", 1, "A 不对，【答案】: C <eoa>", ["C"]),
        ("single_choice", 1, "【答案】 E", []),
        ("multi_choice", 1, "【解析】A错 <eoe>【答案】 D B <eoa>", ["BD"]),
        ("multi_choice", 1, "AAAA 所以我认为应该选 C、D。", ["CD"]),  # in the last ten characters
        ("multi_choice", 1, "A 和 B 都不是我想说的那一个答案呀", []),
        ("multi_question_choice", 2, "A（1）【答案】：B <eoa>（2）【答案】 D", ["B", "D"]),
        ("multi_question_choice", 2, "B D C", ["B", "D"]),  # without marks: the first
        ("multi_question_choice", 3, "A【答案】B【答案】D", ["A", "B", "D"]),
        ("five_out_of_seven", 5, "【答案】 G A F C B E <eoa>", list("GAFCB")),
    ],
)
def test_exam_answers(kind, count, text, letters):
    assert exam_answers(text, kind, count) == letters


def test_exam_answers_names_the_kinds():
    with pytest.raises(ConfigError, match="single_choice"):
        exam_answers("A", "essay", 1)


def test_capitals_are_taken_as_they_come():
    assert capitals(" (C), not (A). Because") == ["C", "A", "B"]
    assert capitals("GH") == []
