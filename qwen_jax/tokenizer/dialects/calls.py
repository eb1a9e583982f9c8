"""Calls of tools, and what a dialect is: how a model writes calls in its text. Report: 3.4."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call of a tool by the assistant."""

    name: str
    arguments: str  # JSON as in OpenAI's API, or plain text, such as code
    id: str | None = dataclasses.field(default=None, compare=False)


class Parsed(NamedTuple):
    """The text of an assistant's turn, taken apart."""

    text: str  # what is none of the calls
    calls: tuple[ToolCall, ...]
    problems: tuple[str, ...] = ()  # why a call that the model began is left in the text


class Dialect(NamedTuple):
    """One way to write calls, both ways: parse(write(text, calls)) gives text and calls back."""

    name: str
    write: Callable[[str, Sequence[ToolCall]], str]  # text and calls -> content of the turn
    parse: Callable[[str], Parsed]  # content of the turn -> text and calls
    stops: tuple[str, ...] = ()  # strings before which a turn with a call ends, besides its tokens


def assistant_message(parsed: Parsed) -> dict[str, Any]:
    """Returns the message for a chat template, whose arguments are objects if they are JSON ones.

    Templates write arguments with `tojson`, which would quote JSON that is a string.
    """
    message: dict[str, Any] = {"role": "assistant", "content": parsed.text}
    if parsed.calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": json_object(call)}}
            for call in parsed.calls
        ]
    return message


def json_object(call: ToolCall) -> Any:
    """Returns the arguments as an object; as the string that they are, if they are not JSON."""
    try:
        found = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments
    return found if isinstance(found, dict) else call.arguments


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Splits a turn of Qwen3 at its thoughts.

    Returns:
      What is between <think> and </think>, and what follows. None if there are no thoughts. A
      prompt may end with <think>, so the first tag may be missing; thoughts without an end are
      all there is.
    """
    before, end, after = text.partition("</think>")
    if not end and not text.lstrip().startswith("<think>"):
        return None, text
    return before.strip().removeprefix("<think>").strip("\n"), after.lstrip("\n")
