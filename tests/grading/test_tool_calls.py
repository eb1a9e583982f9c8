"""Calls of tools: the first one, its similarity, and accepted arguments."""

import pytest

from qwen_jax.grading.tool_calls import first_call, input_similarity, is_accepted, rouge_l


@pytest.mark.parametrize(
    "text, name, arguments",
    [
        ("Thought: x\nAction: f\nAction Input: {\"a\": 1}", "f", {"a": 1}),
        ("Action: f \nAction Input: ```json\n{\"a\": 1}\n```\nObservation: 2", "f", {"a": 1}),
        ("Action: f\nAction Input: {'a': 1}", "f", None),
        ("Action: f\nAction Input: [1]", "f", None),
        ("\nAction: f\nAction Input: {}\nAction: g\nAction Input: {}", "f", {}),
        ("Action: f\nAction Input: {\"a\": \"北京\"}\nThought: y", "f", {"a": "北京"}),
    ],
)  # fmt: skip
def test_first_call(text, name, arguments):
    call = first_call(text)
    assert call is not None and (call.name, call.arguments) == (name, arguments)


@pytest.mark.parametrize("text", ["", "Final Answer: 3", "Action: f", "an Action: f Action Input:"])
def test_first_call_is_none_without_both_labels(text):
    assert first_call(text) is None


def test_rouge_l_is_the_f_measure_of_common_words():
    assert rouge_l("a b c d", "a c e") == pytest.approx(2 * 2 / 7)
    assert rouge_l("北京天气", "北京") == pytest.approx(2 * 2 / 6)
    assert rouge_l("", "") == 1 and rouge_l("", "a") == 0


def test_input_similarity_ignores_the_order_of_keys():
    call = first_call('Action: f\nAction Input: {"b": 2, "a": 1}')
    assert input_similarity(call, {"a": 1, "b": 2}) == 1
    assert input_similarity(None, {}) == 0


@pytest.mark.parametrize(
    "arguments, accepted",
    [
        ({"city": "new york", "unit": 2}, True),
        ({"city": "New-York."}, True),  # without case and punctuation
        ({"city": "York"}, False),
        ({"unit": 2}, False),  # required
        ({"city": "new york", "other": 1}, False),
        ({"city": "new york", "unit": True}, False),
        ({"city": "new york", "list": [1, 2.0]}, True),
        ({"city": "new york", "list": [2, 1]}, False),
        (None, False),
    ],
)
def test_is_accepted(arguments, accepted):
    options = {"city": ["New York", "NY"], "unit": ["", 1, 2], "list": ["", [1, 2]]}
    assert is_accepted(arguments, options, ["city"]) == accepted
