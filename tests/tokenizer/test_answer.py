"""Answers taken apart: whole, and as they arrive."""

import json
import random

import pytest

from qwen_jax.tokenizer.dialects.answer import AnswerFormat, AnswerStream, Thinking, read_answer
from qwen_jax.tokenizer.dialects.hermes import HERMES
from qwen_jax.tokenizer.dialects.react import REACT

F = '<tool_call>\n{"name": "f", "arguments": {"a": "}{\\"\\\\"}}\n</tool_call>'
G = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
BAD = "<tool_call>\n{bad}\n</tool_call>"
TEXT = '<tool_call>\n{"name": "s", "arguments": "text"}\n</tool_call>'
NEVER, POSSIBLE, OPEN = Thinking
HERMES_CASES = [
    ("Hello", "Hello", None, []),
    ("", "", None, []),
    (f"I look.\n{F}", "I look.", None, ["f"]),
    (f"{F}\n{G}\n", "", None, ["f", "g"]),
    (f"a\n\n{F}\n b \n{G} c", "a\n\n b  c", None, ["f", "g"]),
    (f"x\n{BAD}", f"x\n{BAD}", None, []),
    (f"{F}\n{BAD}\n", f"\n{BAD}\n", None, ["f"]),
    ("<tool_call>\n{", "<tool_call>\n{", None, []),
    (TEXT, "", None, ["s"]),
    ("a<tool", "a<tool", None, []),
]


def streamed(text: str, form: AnswerFormat, cuts: list[int]):
    """Returns content, reasoning and calls of an answer that arrives in parts."""
    stream, pieces = AnswerStream(form), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pieces += stream.add(text[begin:end])
    pieces += stream.finish()
    assert all(piece.shown or piece.raw for piece in pieces)
    assert "".join(piece.raw for piece in pieces) == text  # nothing is lost for readers of all
    pieces = [piece for piece in pieces if piece.shown]
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.kind == "name":
            calls.append([piece.text, ""])
        elif piece.kind == "arguments":
            calls[-1][1] += piece.text
    by_kind = {
        kind: "".join(piece.text for piece in pieces if piece.kind == kind)
        for kind in ("content", "reasoning")
    }
    return by_kind["content"], by_kind["reasoning"], [(n, _plain(a)) for n, a in calls]


def _plain(arguments: str):
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def whole(text: str, form: AnswerFormat):
    found = read_answer(text, form)
    calls = [(call.name, _plain(call.arguments)) for call in found.calls]
    return found.content, found.reasoning or "", calls


@pytest.mark.parametrize("text, content, reasoning, names", HERMES_CASES)
def test_read_answer_finds_calls_and_keeps_what_is_malformed(text, content, reasoning, names):
    found = read_answer(text, AnswerFormat(dialect=HERMES))
    assert (found.content, found.reasoning) == (content, reasoning)
    assert [call.name for call in found.calls] == names
    assert read_answer(text, AnswerFormat()).content == text  # without tools, all is content


def test_thoughts_are_split_where_the_prompt_allows_them():
    text = "<think>\nHm.\n</think>\n\nYes."
    assert whole(text, AnswerFormat(POSSIBLE)) == ("Yes.", "Hm.", [])
    assert whole("Hm.\n</think>\n\nYes.", AnswerFormat(OPEN)) == ("Yes.", "Hm.", [])
    assert whole("Hm, the tok", AnswerFormat(OPEN)) == ("", "Hm, the tok", [])
    assert whole(text, AnswerFormat(NEVER)) == (text, "", [])
    assert whole("</think> is a tag", AnswerFormat(POSSIBLE)) == ("</think> is a tag", "", [])


def test_calls_after_the_first_are_dropped_unless_parallel():
    form = AnswerFormat(dialect=HERMES, parallel=False)
    assert whole(f"{F}\n{G}", form)[2] == streamed(f"{F}\n{G}", form, [20])[2]
    assert [name for name, _ in whole(f"{F}\n{G}", form)[2]] == ["f"]


def test_arguments_stream_before_the_call_ends():
    stream = AnswerStream(AnswerFormat(dialect=HERMES))
    assert stream.add('a\n<tool_call>\n{"name": "f", "argu')[0].text == "a"
    name, first = stream.add('ments": {"x": "long ')
    assert (name.kind, name.text, first.kind, first.text) == (
        "name",
        "f",
        "arguments",
        '{"x": "long ',
    )
    assert [piece.text for piece in stream.add('text"}')] == ['text"}']
    assert [one.shown for one in stream.add("}\n</tool_call>")] == [False]
    assert stream.finish() == []
    stream = AnswerStream(AnswerFormat(dialect=REACT))
    (thought,) = stream.add("Thought: go\nAction: f\n")  # for readers who want it at once
    assert (thought.raw, thought.shown) == ("Thought: go\n", False)
    kinds = [(p.kind, p.text) for p in stream.add('Action Input: {"x": ') if p.shown]
    assert kinds == [("content", "go"), ("name", "f"), ("arguments", '{"x":')]


def test_a_stream_has_the_parts_of_the_whole_answer():
    hermes = [F, G, BAD, TEXT, "\n", " ", "x", "<tool_call>", "<", "<think>", "</think>"]
    react = [
        "Thought: x",
        "\nAction: f\nAction Input: ",
        '{"a": 1}',
        "\nObservation:",
        "Final Answer: yes",
        "\n",
        " t ",
    ]
    rng = random.Random(0)
    compared = 0
    for _ in range(4000):
        dialect, words = rng.choice([(HERMES, hermes), (REACT, react), (None, hermes)])
        text = "".join(rng.choices(words, k=rng.randint(1, 7)))
        form = AnswerFormat(rng.choice(list(Thinking)), dialect)
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 8)))
        expected, found = whole(text, form), streamed(text, form, cuts)
        if dialect is HERMES and len(found[2]) > len(expected[2]):
            continue  # a call had started when it turned out to be malformed
        assert found == expected, (text, form, cuts)
        compared += 1
    assert compared > 3500
