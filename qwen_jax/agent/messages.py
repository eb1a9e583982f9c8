"""The messages that a reply and its results become: in the loop, and in rows of training."""

import re
from collections.abc import Sequence
from typing import Any

from qwen_jax.agent.events import Call, Observation
from qwen_jax.tokenizer.dialects.calls import (
    Dialect,
    Parsed,
    ToolCall,
    assistant_message,
    split_reasoning,
)
from qwen_jax.tokenizer.dialects.react import REACT

ACTION = re.compile(r"^Action:[ \t]*(.*)$", re.MULTILINE)


def parse(dialect: Dialect, content: str) -> tuple[str | None, Parsed]:
    """Returns the thoughts of Qwen3, and text and calls; thoughts are not searched for calls."""
    reasoning, rest = (None, content) if dialect is REACT else split_reasoning(content)
    return reasoning, dialect.parse(rest)


def answer(parsed: Parsed, reasoning: str | None) -> dict[str, Any]:
    """Returns the message of a reply without calls."""
    return {"role": "assistant", "content": parsed.text} | _reasoning(reasoning)


def with_calls(
    dialect: Dialect, parsed: Parsed, reasoning: str | None, calls: Sequence[Call]
) -> dict[str, Any]:
    """Returns the message of a reply with calls, or with calls that cannot be read."""
    text = parsed.text
    if dialect is REACT and not parsed.calls:  # an action without input
        text = ACTION.split(text)[0].strip().removeprefix("Thought:")
    text = text.strip() if calls else text
    made = tuple(ToolCall(call.name, call.arguments) for call in calls)
    message = assistant_message(Parsed(text, made)) | _reasoning(reasoning)
    for call, made in zip(calls, message.get("tool_calls", ()), strict=True):
        made["id"] = call.id
    return message


def result(observation: Observation) -> dict[str, Any]:
    """Returns the message of a call's result."""
    return {
        "role": "tool",
        "tool_call_id": observation.call_id,
        "name": observation.name,
        "content": observation.text,
    }


def _reasoning(text: str | None) -> dict[str, str]:
    return {"reasoning_content": text} if text else {}
