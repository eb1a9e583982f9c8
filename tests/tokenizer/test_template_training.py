"""What the assistant wrote of a conversation: the tokens that are trained, by each template."""

import json

import numpy as np
import pytest

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects import react
from qwen_jax.tokenizer.template.training import examples, response
from tests.helpers.chat_templates import NAMES, released, renderings, with_template

BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CHAT = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
]
AGENT = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "Look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "result"},
    {"role": "assistant", "content": "done"},
]
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)


def written(tokenizer, found):
    """Returns the trained text of each example."""
    return [tokenizer.decode(each.tokens[each.writer >= 0]) for each in found]


def test_examples_have_the_ids_of_the_text_and_train_what_the_assistant_wrote(shared):
    count = 0
    for row in renderings(shared):
        messages, tools, name = row["messages"], row["tools"], row["template"]
        indices = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if row["add_generation_prompt"] or not indices or "<|im_" in json.dumps(messages):
            continue
        tokenizer = released(shared, name)
        try:
            found = examples(tokenizer, messages, tools, **row["kwargs"])
        except TokenizerError as error:  # two turns of the assistant in a row, or as here
            assert "in another way than its prompt" in str(error) and name != "qwen2.5"
            continue
        ends = messages[-1]["role"] == "assistant"
        if name == "qwen2.5" or len(found) == 1 and len(indices) == 1 and ends:
            ids = tokenizer.encode(row["text"], allow_special=True)
            assert found[0].tokens.tolist() == ids
        text = "".join(written(tokenizer, found))
        assert text.count("<|im_end|>") == len(indices)
        for index in indices:
            content = tokenizer.normalized(messages[index]["content"] or "")
            assert content.strip("\n").rpartition("</think>")[2].strip("\n") in text
        count += 1
    assert count >= 25


@pytest.mark.parametrize(
    "name, texts",
    [
        ("qwen2.5", ["a<|im_end|>b<|im_end|>"]),
        ("qwen3", ["<think>\n\n</think>\n\na<|im_end|>", "<think>\n\n</think>\n\nb<|im_end|>"]),
        ("qwen3_thinking_2507", ["\n\n</think>\n\na<|im_end|>", "\n\n</think>\n\nb<|im_end|>"]),
    ],
)
def test_examples_are_one_for_each_turn_if_earlier_turns_are_rendered_otherwise(
    shared, name, texts
):
    tokenizer = released(shared, name)
    found = examples(tokenizer, CHAT)
    assert written(tokenizer, found) == texts
    if len(texts) > 1:
        for number, each in zip((2, 4), found, strict=True):
            text = tokenizer.apply_chat_template(CHAT[:number])
            assert each.tokens.tolist() == tokenizer.encode(text, allow_special=True)
    last = examples(tokenizer, CHAT, trained=[False, False, False, True])
    assert written(tokenizer, last) == [texts[-1].rpartition("a<|im_end|>")[2]]


def test_examples_leave_out_the_thoughts_that_the_prompt_closes(shared):
    tokenizer = released(shared, "qwen3")
    found = examples(tokenizer, CHAT, enable_thinking=False)
    assert written(tokenizer, found) == ["a<|im_end|>", "b<|im_end|>"]
    thoughts = [*CHAT[:3], {**CHAT[3], "reasoning_content": "hm"}]
    assert written(tokenizer, examples(tokenizer, thoughts))[-1] == (
        "<think>\nhm\n</think>\n\nb<|im_end|>"
    )
    with pytest.raises(TokenizerError, match="in another way than its prompt"):
        examples(tokenizer, thoughts, enable_thinking=False)


def test_examples_train_calls_in_the_dialect_and_not_their_results(shared):
    call = 'Look.\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
    tokenizer = released(shared, "qwen2.5")
    found = examples(tokenizer, AGENT, TOOLS)
    assert written(tokenizer, found) == [f"{call}done<|im_end|>"]
    assert set(found[0].writer) == {-1, 1, 3}


def test_examples_follow_the_marks_of_the_template_and_add_the_end_token():
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    tokenizer = with_template(MARKED)
    found = examples(tokenizer, CHAT)
    assert written(tokenizer, found) == ["a<|im_end|>b<|im_end|>"]
    text = tokenizer.apply_chat_template(CHAT)
    assert found[0].tokens.tolist() == tokenizer.encode(text, allow_special=True)
    only = examples(tokenizer, CHAT, trained=[False, True, False, False])
    assert written(tokenizer, only) == ["a<|im_end|>"]
    # The marks may enclose the end token, and a line end behind it.
    wider = MARKED.replace("{% endgeneration %}", "<|im_end|>\n{% endgeneration %}")
    wider = with_template(wider.replace("{% endif %}<|im_end|>\n", "<|im_end|>\n{% endif %}"))
    assert written(wider, examples(wider, CHAT)) == ["a<|im_end|>\nb<|im_end|>\n"]
    with pytest.raises(TokenizerError, match="U\\+10FFFC"):
        examples(tokenizer, [CHAT[0], {"role": "assistant", "content": "\U0010fffc"}])
    twice = MARKED.replace("{% endgen", "{% endgeneration %}{% generation %}b{% endgen")
    with pytest.raises(TokenizerError, match="marks 4 parts as generated for 2 turns"):
        examples(with_template(twice), CHAT, trained=[False, True, False, False])


def test_a_token_on_the_boundary_belongs_to_the_turn(shared):
    tokenizer = released(shared, "qwen2.5")
    found = examples(tokenizer, [CHAT[0], {"role": "assistant", "content": "\nthe"}])
    assert b"\n\n" in tokenizer.mergeable_ranks
    assert written(tokenizer, found) == ["\n\nthe<|im_end|>"]  # as transformers' mask


def test_examples_without_a_template_train_react_up_to_the_result():
    (found,) = examples(BYTES, AGENT)
    assert BYTES.decode(found.tokens[found.writer == 1]) == (
        'Thought: Look.\nAction: f\nAction Input: {"x": 1}\nObservation:'
    )
    assert BYTES.decode(found.tokens[found.writer == 3]) == (
        "Thought: I now know the final answer.\nFinal Answer: done<|im_end|>"
    )
    text = BYTES.apply_chat_template(AGENT)
    assert BYTES.decode(found.tokens) == text
    # With tools, the last question is posed by a prompt that describes them.
    first, second = examples(BYTES, [*AGENT, *CHAT[2:]], TOOLS)
    assert "Question: q" in BYTES.decode(first.tokens)
    assert "Question: q" not in BYTES.decode(second.tokens)
    assert BYTES.decode(second.tokens[second.writer >= 0]).endswith("Final Answer: b<|im_end|>")
    assert set(second.writer) == {-1, 5}


@pytest.mark.parametrize("name", [*NAMES, None])
def test_response_ends_with_the_end_token_and_trains_only_the_response(shared, name):
    tokenizer = BYTES if name is None else released(shared, name)
    found = response(tokenizer, CHAT, 3)
    assert tokenizer.decode(found.tokens).endswith("b<|im_end|>")
    assert set(found.writer) == {-1, 3} and found.writer[-1] == 3
    text = tokenizer.apply_chat_template(CHAT)
    assert text.startswith(tokenizer.decode(found.tokens))
    if name in (None, "qwen2.5"):
        called = response(tokenizer, AGENT, 1)
        assert set(called.writer) == {-1, 1, 3}
        assert "result" not in tokenizer.decode(called.tokens[called.writer >= 0])


def test_response_needs_something_that_is_generated():
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    none = with_template(MARKED.replace("m.role == 'assistant'", "m.role == 'nobody'"))
    with pytest.raises(TokenizerError, match="marks nothing of the response"):
        response(none, CHAT, 3)


def test_examples_take_no_variables_without_a_template():
    with pytest.raises(TokenizerError, match="no variable x"):
        examples(BYTES, CHAT, x=1)
    assert np.all(examples(BYTES, CHAT)[0].writer < 4)


REACT_TEXT = (
    "Thought: Look.\nAction: f\nAction Input: {}\nObservation: two\nlines\nThought: I see.\n"
    "Final Answer: two"
)


@pytest.mark.parametrize("name", [None, "qwen2.5"])
def test_examples_do_not_train_the_observations_of_a_transcript(request, name):
    tokenizer = BYTES if name is None else released(request.getfixturevalue("shared"), name)
    asked = react.prompt("How many?", [("f", "f: counts")])
    for question, observed in ((asked, False), ("How many?", True)):
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": REACT_TEXT},
        ]
        ((text),) = written(tokenizer, examples(tokenizer, messages))
        assert ("lines" in text) == observed
        if not observed:
            assert text.startswith("Thought: Look.\nAction: f\nAction Input: {}\nObservation:")
            assert text.endswith("Thought: I see.\nFinal Answer: two<|im_end|>")
        found = response(tokenizer, messages, 1)
        assert tokenizer.decode(found.tokens[found.writer >= 0]) == text
