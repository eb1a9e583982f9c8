"""Rows through chat templates: conversations, pairs and prompts, and what a template leaves out."""

import json

import numpy as np
import pytest

from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.pairs import PairRows, read_pairs
from qwen_jax.data.chat.prompts import read_prompts
from qwen_jax.data.chat.sft_rows import SPLIT, encode
from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.chat_templates import NAMES, released, with_template

BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": "\u00e9"}'}, "id": "1"}
CALLED = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "r"},
    {"role": "assistant", "content": "a"},
]
THOUGHT = [CALLED[0], {"role": "assistant", "content": "a", "thinking": "hm"}]
PLAIN = [CALLED[0], {"role": "assistant", "content": "plain"}]


def sft(tmp_path, rows, tokenizer, **more):
    """Returns the trained text of each example, and the counts."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = Counts()
    found = encode(
        read_conversations([path], counts), tokenizer, context_length=4000, counts=counts, **more
    )
    return [tokenizer.decode(each.tokens[each.weights > 0]) for each in found], counts


def test_encode_writes_calls_and_thoughts_as_the_template_does(shared, tmp_path):
    rows = [{"tools": TOOLS, "messages": CALLED}, {"messages": THOUGHT}]
    call = '<tool_call>\n{"name": "f", "arguments": {"x": "\u00e9"}}\n</tool_call><|im_end|>'
    texts, counts = sft(tmp_path, rows, released(shared, "qwen3"))
    empty = "<think>\n\n</think>\n\n"
    thought = "<think>\nhm\n</think>\n\na<|im_end|>"
    assert texts == [f"{empty}{call}", f"{empty}a<|im_end|>", thought]
    assert counts.kept == 2 and counts.changed == {SPLIT: 1}
    texts, counts = sft(tmp_path, rows, released(shared, "qwen2.5"))
    assert texts == [f"{call}a<|im_end|>"]  # Qwen2.5 has no thoughts
    assert counts.kept == 1 and next(iter(counts.skipped)).startswith("reasoning next to a text")


def test_encode_uses_the_variables_of_the_row_on_top_of_those_of_the_flag(shared, tmp_path):
    own = {"chat_template_kwargs": {"enable_thinking": True}, "messages": PLAIN}
    texts, counts = sft(
        tmp_path, [own, {"messages": PLAIN}], released(shared, "qwen3"),
        variables={"enable_thinking": False},
    )  # fmt: skip
    assert texts == ["<think>\n\n</think>\n\nplain<|im_end|>", "plain<|im_end|>"]
    assert not counts.unread
    assert sft(tmp_path, [own, {"messages": PLAIN}], BYTES)[1].skipped == {
        "without a chat template there is no variable enable_thinking.": 1
    }


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"tools": TOOLS, "messages": PLAIN}, "tools: the model's chat template has no place"),
        ({"messages": CALLED}, "calls of tools: the model's chat template has no place"),
        ({"messages": THOUGHT}, "reasoning next to a text: the model's chat template has no place"),
        ({"messages": [{"role": "system", "content": "bad"}, *PLAIN]}, "refuses the conversation"),
    ],
)
def test_a_row_that_the_template_cannot_render_is_skipped_and_counted(tmp_path, row, reason):
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    tokenizer = with_template(
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    texts, counts = sft(tmp_path, [row, {"messages": PLAIN}], tokenizer)
    assert texts == ["plain<|im_end|>"] and counts.kept == 1
    (found,) = counts.skipped
    assert reason in found
    with pytest.raises(TokenizerError, match="malformed"):  # not a fault of the rows
        sft(tmp_path, [row], with_template("{% if %}"))


def test_tools_that_are_text_go_under_the_system_message(shared, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"tools": "Call f(x).", "prompt": "q", "completion": "a"}
    path.write_text(json.dumps(row) + "\n")
    for tokenizer in (BYTES, released(shared, "qwen3")):
        (ids,) = read_prompts([path], tokenizer, max_tokens=999, counts=Counts())
        text = tokenizer.decode(ids)
        assert text.startswith(
            "<|im_start|>system\nTools:\nCall f(x).<|im_end|>\n<|im_start|>user\nq"
        )


@pytest.mark.parametrize("name", [*NAMES, None])
def test_read_prompts_renders_tools_and_ends_where_the_answer_begins(shared, tmp_path, name):
    tokenizer = BYTES if name is None else released(shared, name)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"tools": TOOLS, "messages": CALLED}) + "\n")
    (ids,) = read_prompts([path], tokenizer, max_tokens=9999, counts=Counts())
    messages = [*CALLED[:1], {**CALLED[1], "content": ""}, *CALLED[2:3]]
    messages[1]["tool_calls"] = [{**CALL, "function": {"name": "f", "arguments": {"x": "\u00e9"}}}]
    right = tokenizer.apply_chat_template(messages, TOOLS, add_generation_prompt=True)
    assert tokenizer.decode(ids) == right


@pytest.mark.parametrize("name", [*NAMES, None])
def test_pair_rows_weigh_what_each_response_wrote(shared, tmp_path, name):
    tokenizer = BYTES if name is None else released(shared, name)
    path = tmp_path / "rows.jsonl"
    row = {"prompt": PLAIN[:1], "chosen": PLAIN[1:], "rejected": [{**PLAIN[1], "content": "b"}]}
    path.write_text(json.dumps(row) + "\n")
    counts = Counts()
    pairs = read_pairs([path], counts)
    (batch,) = PairRows(pairs, tokenizer, context_length=200, counts=counts)
    before = {"qwen3": "<think>\n\n</think>\n\n", "qwen3_thinking_2507": "\n\n</think>\n\n"}
    for side, text in enumerate(("plain", "b")):
        weighed = batch.targets[side][batch.response_weights[side] > 0]
        assert tokenizer.decode(weighed) == f"{before.get(name or '', '')}{text}<|im_end|>"
        assert batch.tokens[side, batch.end[side]] == tokenizer.im_end
    start = int(np.flatnonzero(batch.response_weights[0])[0])
    np.testing.assert_array_equal(batch.tokens[0, : start + 1], batch.tokens[1, : start + 1])
