"""LiteLLM: two tools, streamed and not, and a JSON schema."""

import json
import os
from typing import Literal

import pytest

from tests.helpers.server import MODEL
from tests.helpers.tool_models import CLOCK, WEATHER

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would load prices from the network
litellm = pytest.importorskip("litellm", reason="litellm is not installed: make test-clients")
import pydantic  # noqa: E402

litellm.telemetry = False


class Report(pydantic.BaseModel):
    """What a schema asks for."""

    city: Literal["Oslo", "Rome"]


def complete(url: str, **body):
    return litellm.completion(
        model=f"openai/{MODEL}", api_base=url, api_key="none", max_tokens=1500, timeout=900, **body
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_with_two_tools(url, stream):
    messages: list = [{"role": "user", "content": "Is it cold?"}]
    for name in ("weather", "clock"):
        choice = {"type": "function", "function": {"name": name}}
        found = complete(
            url, messages=messages, tools=[WEATHER, CLOCK], tool_choice=choice, stream=stream,
            parallel_tool_calls=False,
        )  # fmt: skip
        if stream:
            found = litellm.stream_chunk_builder(list(found), messages=messages)
        message = found.choices[0].message
        (call,) = message.tool_calls
        assert call.function.name == name and found.choices[0].finish_reason == "tool_calls"
        assert isinstance(json.loads(call.function.arguments), dict)
        result = {"role": "tool", "tool_call_id": call.id, "name": name, "content": "3"}
        messages += [message.model_dump(), result]


def test_a_json_schema(url):
    messages = [{"role": "user", "content": "Where is it cold?"}]
    found = complete(url, messages=messages, response_format=Report)
    assert Report.model_validate_json(found.choices[0].message.content)
