"""Tools, thoughts and settings through the server and OpenAI's client."""

import json

import openai
import pytest

from qwen_jax.tokenizer.bpe import Tokenizer
from tests.helpers.server import MODEL, running
from tests.helpers.tool_models import (
    CLOCK,
    HERMES,
    NO_TOOLS,
    THINKING,
    WEATHER,
    ScriptedEngine,
    tokenizer_with,
)

USER = {"role": "user", "content": "Is it cold?"}
CALLS = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    '\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)
MALFORMED = 'x\n<tool_call>\n{"name": weather}\n</tool_call>'
REACT = 'Thought: Let me look.\nAction: weather\nAction Input: {"city": "Oslo"}\nObservation: 3'


def ask(texts: list[str], template: str | None = HERMES, messages=None, **body):
    """Returns a response, the chunks of the same request streamed, and the engine."""
    tokenizer: Tokenizer = tokenizer_with(template)
    engine = ScriptedEngine(tokenizer, texts * 2)
    with running(engine, tokenizer, context=4096) as server, server.client() as client:
        create = client.chat.completions.create
        body = {"model": MODEL, "messages": messages or [USER], **body}
        found = create(**body)
        return found.choices[0], list(create(**body, stream=True)), engine


def joined(chunks):
    """Returns role, content, thoughts, calls and finish_reason of a stream, after its rules."""
    content = thoughts = ""
    calls: list[dict[str, str]] = []
    finish = None
    for chunk in chunks:
        (choice,) = chunk.choices
        delta = choice.delta
        content += delta.content or ""
        thoughts += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or ():
            if call.id is not None:
                assert (call.index, call.type) == (len(calls), "function")
                assert call.function.arguments == ""
                calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
            else:
                assert call.index == len(calls) - 1 and call.function.name is None
                calls[-1]["arguments"] += call.function.arguments
        assert finish is None
        finish = choice.finish_reason
    assert chunks[0].choices[0].delta.role == "assistant"
    return content, thoughts, calls, finish


@pytest.mark.parametrize("template, text", [(HERMES, CALLS), (None, REACT)])
def test_calls_are_those_of_openai(template, text):
    found, chunks, engine = ask([text], template, tools=[WEATHER, CLOCK])
    assert (found.message.content, found.finish_reason) == ("Let me look.", "tool_calls")
    calls = found.message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "clock"][: len(calls)]
    assert json.loads(calls[0].function.arguments) == {"city": "Oslo"}
    content, _, streamed, finish = joined(chunks)
    assert (content, finish) == ("Let me look.", "tool_calls")
    assert [call["name"] for call in streamed] == [call.function.name for call in calls]
    assert json.loads(streamed[0]["arguments"]) == {"city": "Oslo"}
    assert chunks[-1].choices[0].delta.model_dump(exclude_none=True) == {}
    assert "weather" in engine.shown_prompts()[0]
    # The client sends back what it got, and results.
    results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in calls]
    answer = "Final Answer: Yes." if template is None else "Yes."
    history = [USER, found.message.model_dump(exclude_none=True), *results]
    found, _, engine = ask([answer], template, history, tools=[WEATHER, CLOCK])
    assert (found.message.content, found.finish_reason) == ("Yes.", "stop")
    assert "Oslo" in engine.shown_prompts()[0]


def test_malformed_calls_and_calls_without_tools_are_content():
    found, chunks, _ = ask([MALFORMED], tools=[WEATHER])
    assert (found.message.content, found.finish_reason) == (MALFORMED, "stop")
    assert joined(chunks)[::3] == (MALFORMED, "stop") and found.message.tool_calls is None
    for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        found, chunks, engine = ask([CALLS], **more)
        assert found.message.content == joined(chunks)[0] == CALLS
        assert "weather" not in engine.shown_prompts()[0]


def test_one_call_if_not_parallel():
    found, chunks, _ = ask([CALLS], tools=[WEATHER, CLOCK], parallel_tool_calls=False)
    assert len(found.message.tool_calls) == len(joined(chunks)[2]) == 1


def test_a_call_that_is_cut_off_has_finish_reason_length():
    found, chunks, _ = ask([CALLS], tools=[WEATHER], max_tokens=60)
    assert found.finish_reason == joined(chunks)[3] == "length"
    assert joined(chunks)[2][0]["arguments"].startswith("{")


def test_thoughts_are_reasoning_content():
    text = "<think>\nIt is winter.\n</think>\n\nYes."
    found, chunks, _ = ask([text], THINKING)
    assert (found.message.content, found.message.reasoning_content) == ("Yes.", "It is winter.")
    assert joined(chunks)[:2] == ("Yes.", "It is winter.")
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    found, chunks, engine = ask(["Yes."], THINKING, extra_body=off)
    assert found.message.content == joined(chunks)[0] == "Yes."
    assert engine.shown_prompts()[0].endswith("<think>\n\n</think>\n\n")


def test_a_template_without_tools_is_a_400_that_names_tools():
    with pytest.raises(openai.BadRequestError) as caught:
        ask(["x"], NO_TOOLS, tools=[WEATHER])
    assert caught.value.param == "tools"


def test_penalties_and_bias_reach_the_engine():
    _, _, engine = ask(
        ["x"], presence_penalty=0.5, frequency_penalty=-1, logit_bias={"50": -100, "7": 1}
    )
    sampling = engine.requests[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -1)
    assert sampling.biases == {7: 1.0, 50: -100.0}
