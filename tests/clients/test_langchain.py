"""LangChain: two tools, streamed and not, and structured output."""

from typing import Literal

import pytest

from tests.helpers.server import MODEL

langchain = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed: make test-clients"
)
import pydantic  # noqa: E402
from langchain_core.messages import HumanMessage, ToolMessage  # noqa: E402
from langchain_core.tools import tool  # noqa: E402


class Report(pydantic.BaseModel):
    """What a schema asks for."""

    city: Literal["Oslo", "Rome"]


@tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Weather of a city."""
    return f"3 degrees in {city}"


@tool
def clock() -> str:
    """The time."""
    return "noon"


TOOLS = {"weather": weather, "clock": clock}


@pytest.fixture
def model(url):
    return langchain.ChatOpenAI(
        model=MODEL, base_url=url, api_key="none", max_retries=0, timeout=900, max_tokens=1500
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_with_two_tools(model, stream):
    messages: list = [HumanMessage("Is it cold?")]
    for name in ("weather", "clock"):
        bound = model.bind_tools(list(TOOLS.values()), tool_choice=name, parallel_tool_calls=False)
        if stream:
            chunks = list(bound.stream(messages))
            answer = chunks[0]
            for chunk in chunks[1:]:
                answer += chunk
        else:
            answer = bound.invoke(messages)
        (call,) = answer.tool_calls
        assert call["name"] == name and not answer.invalid_tool_calls
        result = TOOLS[name].invoke(call["args"])
        messages += [answer, ToolMessage(result, tool_call_id=call["id"])]
    assert messages[2].content.startswith("3 degrees in ") and messages[4].content == "noon"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model, method):
    found = model.with_structured_output(Report, method=method).invoke("Where is it cold?")
    assert isinstance(found, Report)
