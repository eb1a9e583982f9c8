"""/v1/responses: items in and out, events in order, and what a server without state refuses."""

import json

import openai
import pytest

from qwen_jax.serve.api.fields import Limits
from qwen_jax.serve.errors import ApiError
from qwen_jax.serve.responses.request import read_responses
from tests.helpers.server import MODEL, running
from tests.helpers.tool_models import HERMES, THINKING, WEATHER, ScriptedEngine, tokenizer_with

TOOL = {"type": "function", **WEATHER["function"]}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
THOUGHTS = f"<think>\nHm.\n</think>\n\nLet me look.\n{CALL}"
LIMITS = Limits(model=MODEL, context=4096, max_choices=4)


def respond(texts, template=HERMES, **body):
    """Returns the response, the events of the same request streamed, and the engine."""
    tokenizer = tokenizer_with(template)
    engine = ScriptedEngine(tokenizer, texts * 2)
    with running(engine, tokenizer, context=4096) as server, server.client() as client:
        body = {"model": MODEL, "input": "Is it cold?", **body}
        found = client.responses.create(**body)
        return found, list(client.responses.create(**body, stream=True)), engine


def test_text_and_its_events():
    found, events, engine = respond(["Yes, it is."], instructions="Be brief.", max_output_tokens=50)
    assert (found.output_text, found.status, found.error) == ("Yes, it is.", "completed", None)
    assert found.usage.total_tokens == found.usage.input_tokens + 11
    assert "system\nBe brief." in engine.shown_prompts()[0]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    ends = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds[-4:] == ends
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type.endswith("delta")) == "Yes, it is."
    last = events[-1].response
    assert last.output_text == "Yes, it is." and last.usage == found.usage
    assert last.id == events[0].response.id and not events[0].response.output


def test_thoughts_text_and_calls_are_items():
    found, events, _ = respond([THOUGHTS], THINKING, tools=[TOOL])
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call"]
    thoughts, message, call = found.output
    assert thoughts.content[0].text == "Hm." and message.content[0].text == "Let me look."
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo"})
    assert 0 < found.usage.output_tokens_details.reasoning_tokens < found.usage.output_tokens
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.type for item in done] == [item.type for item in found.output]
    assert all(item.status == "completed" for item in done)
    added = [event for event in events if event.type == "response.output_item.added"]
    assert [event.output_index for event in added] == [0, 1, 2]
    (arguments,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert json.loads(arguments.arguments) == {"city": "Oslo"}
    deltas = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(e.delta for e in deltas) == arguments.arguments
    assert {e.item_id for e in deltas} == {arguments.item_id} == {done[2].id}
    # The client sends all of it back, with a result.
    items = [{"role": "user", "content": "Is it cold?"}]
    items += [item.model_dump(exclude_none=True) for item in found.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "3 degrees"})
    found, _, engine = respond(["Yes."], THINKING, tools=[TOOL], input=items)
    assert found.output_text == "Yes."
    prompt = engine.shown_prompts()[0]
    assert f"assistant\nLet me look.\n{CALL}" in prompt and "tool\n3 degrees" in prompt


def test_an_answer_that_is_cut_off_is_incomplete():
    found, events, _ = respond(["Yes, it is."], max_output_tokens=4)
    assert (found.status, found.output_text) == ("incomplete", "Yes,")
    assert found.incomplete_details.reason == "max_output_tokens"
    assert events[-1].type == "response.incomplete" and found.output[0].status == "incomplete"


USER = {"role": "user", "content": "Hi"}
CALLED = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
ENCRYPTED = {"type": "reasoning", "encrypted_content": "x"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "x"}


@pytest.mark.parametrize(
    "body, where",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [USER, OUTPUT]}, "input[1].call_id"),
        ({"input": [USER, {"role": "bard", "content": "x"}]}, "input[1].role"),
        ({"input": [USER | {"content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [USER, {**CALLED, "arguments": {}}]}, "input[1].arguments"),
        ({"input": [USER, {**OUTPUT, "x": 1}]}, "input[1].x"),
        ({"input": [USER, {"type": "reasoning", "content": 5}]}, "input[1].content"),
        ({"input": [USER, {"type": "reasoning", "content": ["x"]}]}, "input[1].content"),
        ({"input": [ENCRYPTED]}, "input[0].encrypted_content"),
        ({"instructions": 5}, "instructions"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search_preview"}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "x": 1}]}, "tools[0].x"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 5000}, "input"),
        ({"temprature": 1}, "temprature"),
    ],
)  # fmt: skip
def test_errors_name_the_field(body, where):
    with pytest.raises(ApiError) as caught:
        read_responses({"model": MODEL, "input": "Hi"} | body, tokenizer_with(HERMES), LIMITS)
    assert (caught.value.where, caught.value.status) == (where, 400)
    assert "max_completion_tokens" not in str(caught.value)


def test_what_has_no_effect_is_accepted():
    body = {"store": False, "include": [], "truncation": "disabled", "metadata": {"a": "b"}}
    found, _, _ = respond(["x"], **body, text={"format": {"type": "text"}})
    assert found.metadata == {"a": "b"}
    with pytest.raises(openai.BadRequestError) as caught:
        respond(["x"], previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
