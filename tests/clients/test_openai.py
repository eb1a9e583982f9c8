"""OpenAI's client: forced calls, streams, JSON schemas and responses."""

import json
from typing import Literal

import openai
import pydantic
import pytest

from tests.helpers.server import MODEL
from tests.helpers.tool_models import CLOCK, WEATHER

TOOLS = [WEATHER, CLOCK]
USER = {"role": "user", "content": "Is it cold?"}


class Report(pydantic.BaseModel):
    """What a schema asks for."""

    city: Literal["Oslo", "Rome"]
    days: list[int] = pydantic.Field(max_length=2)


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=900) as found:
        yield found


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def create(client, stream: bool, **body):
    """Returns a message as a dict, and its finish_reason; chunks are put together."""
    found = client.chat.completions.create(model=MODEL, stream=stream, tools=TOOLS, **body)
    if not stream:
        return found.choices[0].message.model_dump(exclude_none=True), found.choices[
            0
        ].finish_reason
    calls: list[dict] = []
    content, finish = "", None
    for chunk in found:
        delta, finish = chunk.choices[0].delta, chunk.choices[0].finish_reason or finish
        content += delta.content or ""
        for part in delta.tool_calls or ():
            if part.id:
                calls.append(part.model_dump(exclude={"index"}))
            else:
                calls[-1]["function"]["arguments"] += part.function.arguments
    message = {"role": "assistant", "content": content or None}
    return message | ({"tool_calls": calls} if calls else {}), finish


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_with_two_tools(client, stream):
    messages = [USER]
    for seed, (choice, names) in enumerate(
        [(named("weather"), {"weather"}), (named("clock"), {"clock"}), ("required", None)]
    ):
        message, finish = create(
            client, stream, messages=messages, tool_choice=choice, seed=seed, max_tokens=1500,
            parallel_tool_calls=choice == "required",
        )  # fmt: skip
        assert finish == "tool_calls" and not message.get("content")
        messages.append(message)
        for call in message["tool_calls"]:
            arguments = json.loads(call["function"]["arguments"])
            assert names is None or call["function"]["name"] in names
            if call["function"]["name"] == "weather":
                assert arguments["city"] in ("Oslo", "Rome")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": "3"})
    message, finish = create(client, stream, messages=messages, tool_choice="none", max_tokens=5)
    assert finish in ("length", "stop") and "tool_calls" not in message


def test_a_json_schema(client):
    found = client.chat.completions.parse(
        model=MODEL, messages=[USER], response_format=Report, max_tokens=1500, seed=1
    )
    assert isinstance(found.choices[0].message.parsed, Report)
    found = client.chat.completions.create(
        model=MODEL,
        messages=[USER],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=40,
    )
    assert found.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_responses_with_two_tools(client, stream):
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    items: list = [USER]
    for name in ("weather", "clock"):
        body = dict(
            model=MODEL, input=items, tools=tools, max_output_tokens=1500,
            tool_choice={"type": "function", "name": name}, parallel_tool_calls=False,
        )  # fmt: skip
        if stream:
            with client.responses.stream(**body) as events:
                kinds = [event.type for event in events]
                found = events.get_final_response()
            assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        else:
            found = client.responses.create(**body)
        (call,) = found.output
        assert call.name == name and isinstance(json.loads(call.arguments), dict)
        items += [
            call.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": call.call_id, "output": "3"},
        ]
    found = client.responses.parse(
        model=MODEL, input=items, text_format=Report, max_output_tokens=1500
    )
    assert isinstance(found.output_parsed, Report)


def test_a_keyword_that_is_not_supported_is_named(client):
    schema = {"type": "object", "properties": {"a": {"not": {}}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match='"not"') as caught:
        client.chat.completions.create(model=MODEL, messages=[USER], response_format=form)
    assert caught.value.param == "response_format.json_schema.schema"
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    with pytest.raises(openai.BadRequestError, match='"not"') as caught:
        client.chat.completions.create(
            model=MODEL, messages=[USER], tools=[CLOCK, tool], tool_choice="required"
        )
    assert caught.value.param == "tools[1].function.parameters"
