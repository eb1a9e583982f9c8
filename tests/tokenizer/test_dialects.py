"""Calls of tools are read as they are written, in each dialect."""

import json
import random

import pytest

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.dialects.calls import (
    Parsed,
    ToolCall,
    assistant_message,
    split_reasoning,
)
from qwen_jax.tokenizer.dialects.hermes import HERMES
from qwen_jax.tokenizer.dialects.react import REACT
from qwen_jax.tokenizer.dialects.select import dialect_of
from qwen_jax.tokenizer.settings import Settings
from qwen_jax.tokenizer.template.builtin import CHAT_TEMPLATE
from qwen_jax.tokenizer.template.chat import apply_chat_template

OSLO = ToolCall("weather", '{"city": "Oslo"}')
CODE = ToolCall("run", 'print("a")\n\nprint("b")')


@pytest.mark.parametrize("dialect", [HERMES, REACT])
def test_dialects_read_what_they_write(dialect):
    rng = random.Random(0)
    values = ["x", "\u4f60\n", '"</tool_call', "Action", 1, None, [1, {"a": "}"}]]
    for _ in range(300):
        calls = [
            ToolCall(rng.choice(["f", "get_weather", "\u5929\u6c14"]), json.dumps(arguments))
            for arguments in [{"k": rng.choice(values), "": 1}] * rng.randint(0, 3)
        ]
        text = rng.choice(["", "Let me look.", "Two\nlines", "{a}"])
        expected = [ToolCall(each.name, each.arguments) for each in calls]
        found = dialect.parse(dialect.write(text, calls))
        read = [(each.name, json.loads(each.arguments)) for each in found.calls]
        assert read == [(each.name, json.loads(each.arguments)) for each in expected]
        assert (found.text, found.problems) == (text, ())


@pytest.mark.parametrize("template", ["qwen2.5", "qwen3"])
def test_hermes_writes_what_the_released_templates_render(shared, template):
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    source = (shared / f"reference/chat_templates/{template}.jinja").read_text()
    settings = Settings(chat_templates={"default": source})
    for text in ("", "I look.", "a\n\nb"):
        parsed = Parsed(text, (OSLO, ToolCall("f", "{}")))
        # Before a later question, Qwen3's template adds no thoughts.
        messages = [assistant_message(parsed), {"role": "user", "content": "?"}]
        rendered = apply_chat_template(settings, messages)
        turn = rendered.split("<|im_start|>assistant\n")[1].split("<|im_end|>")[0]
        # Qwen2.5 ends the line of the role only before text or a call.
        assert turn == HERMES.write(text, parsed.calls)
        assert HERMES.parse(turn) == parsed


BROKEN = {
    '<tool_call>\n{"name": "f", "arguments": {}\n</tool_call>': "not a call",
    "<tool_call>\n[]\n</tool_call>": "no object with a name",
    '<tool_call>{"name": "f", "id": 3}</tool_call>': "unknown keys id",
    'Yes <tool_call>\n{"name": "f", "argu': "has no end",
}


@pytest.mark.parametrize("text", BROKEN)
def test_hermes_leaves_what_it_cannot_read_in_the_text(text):
    found = HERMES.parse(text)
    assert (found.text, found.calls) == (text, ())
    assert BROKEN[text] in found.problems[0]


def test_hermes_reads_what_models_write():
    loose = 'Ok\n<tool_call>{"name": "f", "parameters": "{\\"a\\": 1}"}</tool_call>\n  '
    assert HERMES.parse(loose) == Parsed("Ok", (ToolCall("f", '{"a": 1}'),))
    between = f"{HERMES.write('', [OSLO])}\nand\n{HERMES.write('', [OSLO])}"
    assert HERMES.parse(between) == Parsed("\nand", (OSLO, OSLO))
    assert HERMES.parse("No call: <tools>") == Parsed("No call: <tools>", ())


def test_react_reads_what_models_write():
    assert REACT.parse(REACT.write("Run it.", [CODE])) == Parsed("Run it.", (CODE,))
    invented = REACT.write("T", [OSLO]) + "\nObservation: 3\nThought: x\nFinal Answer: cold"
    found = REACT.parse(invented)
    assert (found.text, found.calls) == ("T", (OSLO,)) and "observation itself" in found.problems[0]
    twice = f"{invented}\n{REACT.write('', [CODE])}"
    assert REACT.parse(twice).calls == (OSLO,)
    stopped = REACT.write("T", [OSLO]) + "\nObservation:"
    assert REACT.parse(stopped) == Parsed("T", (OSLO,))
    # The prompt after a result ends with "Thought:", so the model goes on without it.
    answer = " I now know the final answer.\nFinal Answer: Cold.\nVery cold."
    assert REACT.parse(answer) == Parsed("Cold.\nVery cold.", ())
    assert REACT.parse("Just text.") == Parsed("Just text.", ())
    assert REACT.parse("Thought: a\nAction: f").problems == ("an Action has no input",)
    quoted = "Final Answer: write\nAction: f\nAction Input: 1"
    assert REACT.parse(quoted) == Parsed("write\nAction: f\nAction Input: 1", ())


def test_dialect_of_is_that_of_the_chat_template(shared):
    for name in ("qwen2.5", "qwen3", "qwen3_thinking_2507"):
        source = (shared / f"reference/chat_templates/{name}.jinja").read_text()
        assert dialect_of(Settings(chat_templates={"default": source})) is HERMES
    assert dialect_of(Settings()) is REACT
    assert dialect_of(Settings(chat_templates={"default": CHAT_TEMPLATE})) is REACT
    for source in ("{{ messages }}", "<tool_call>\n<function=x>"):
        with pytest.raises(TokenizerError, match="dialect that is not supported"):
            dialect_of(Settings(chat_templates={"default": source}))


@pytest.mark.parametrize(
    "text, parts",
    [
        ("<think>\nHm.\n</think>\n\nYes", ("Hm.", "Yes")),
        ("Hm.\n</think>\n\nYes", ("Hm.", "Yes")),
        ("<think>\nHm", ("Hm", "")),
        ("<think>\n\n</think>\n\nYes", ("", "Yes")),
        ("Yes", (None, "Yes")),
        ("a <think> b", (None, "a <think> b")),
    ],
)
def test_split_reasoning_takes_thoughts_apart(text, parts):
    assert split_reasoning(text) == parts
