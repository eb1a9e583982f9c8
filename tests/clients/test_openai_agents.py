"""openai-agents, with its default API and with chat completions. Its tracing is off."""

import asyncio
from typing import Literal

import pytest

from tests.helpers.server import MODEL

agents = pytest.importorskip("agents", reason="openai-agents is not installed: make test-clients")
import openai  # noqa: E402
import pydantic  # noqa: E402

agents.set_tracing_disabled(True)  # nothing leaves this computer
CALLED: list[str] = []


class Report(pydantic.BaseModel):
    """What an agent answers."""

    city: Literal["Oslo", "Rome"]


@agents.function_tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Weather of a city."""
    CALLED.append(f"weather {city}")
    return "3 degrees"


@agents.function_tool
def clock() -> str:
    """The time."""
    CALLED.append("clock")
    return "noon"


def agent(url: str, api: str, **settings):
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=900)
    kind = {
        "responses": agents.OpenAIResponsesModel,
        "chat": agents.OpenAIChatCompletionsModel,
    }[api]
    output = settings.pop("output_type", None)
    return agents.Agent(
        name="a",
        instructions="Be brief.",
        model=kind(model=MODEL, openai_client=client),
        tools=[weather, clock],
        output_type=output,
        model_settings=agents.ModelSettings(max_tokens=1500, temperature=1.0, **settings),
        tool_use_behavior="run_llm_again" if output else "stop_on_first_tool",
    )


@pytest.mark.parametrize("api", ["responses", "chat"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_calls_two_tools(url, api, stream):
    async def run(given, name):
        one = agent(url, api, tool_choice=name)
        if not stream:
            return await agents.Runner.run(one, given)
        found = agents.Runner.run_streamed(one, given)
        events = [event.type async for event in found.stream_events()]
        assert "raw_response_event" in events and "run_item_stream_event" in events
        return found

    async def both():
        first = await run("Is it cold?", "weather")
        items = [*first.to_input_list(), {"role": "user", "content": "And the time?"}]
        return first, await run(items, "clock")

    CALLED.clear()
    first, second = asyncio.run(both())
    assert first.final_output == "3 degrees" and second.final_output == "noon"
    assert len(CALLED) == 2 and CALLED[0].startswith("weather ") and CALLED[1] == "clock"


@pytest.mark.parametrize("api", ["responses", "chat"])
def test_an_agent_answers_with_a_schema(url, api):
    # Tools and a schema: an answer is calls, or follows the schema.
    found = agents.Runner.run_sync(
        agent(url, api, output_type=Report), "Where is it cold?", max_turns=30
    )
    assert isinstance(found.final_output, Report)
