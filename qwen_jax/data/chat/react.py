"""ReAct as text: renders the prompt with its tools and parses thoughts and calls. Report: 3.4.

The prompt is the report's:

    Answer the following questions as best you can. You have access to the following tools:
    NAME: Call this tool to interact with the ... API. ...
    Use the following format:
    Question: ... Thought: ... Action: ... Action Input: ... Observation: ... Final Answer: ...
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.tokenizer.dialects import react
from qwen_jax.utils.jsonl import read_rows


@dataclasses.dataclass(frozen=True)
class Tool:
    """The description of a tool in the prompt."""

    name_for_human: str
    name_for_model: str
    description_for_model: str
    # Each is {"name", "description", "required", "schema": {"type": ...}}. Without parameters, the
    # input is plain text, such as code, not JSON.
    parameters: tuple[dict[str, Any], ...] = ()

    def describe(self) -> str:
        """Returns the tool's line in the prompt."""
        return react.describe(
            self.name_for_model, self.description_for_model, self.parameters, self.name_for_human
        )


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a tool."""

    thought: str
    action: str
    action_input: str
    observation: str


@dataclasses.dataclass(frozen=True)
class Transcript:
    """The model's output: calls, if any, the last thought and the final answer."""

    steps: tuple[Step, ...]
    thought: str
    final_answer: str


class Malformed(Exception):
    """Raised with the reason why a text is not a transcript, or why a call is invalid."""


def prompt(question: str, tools: Sequence[Tool]) -> str:
    """Returns the user turn that poses `question` to a model with `tools`."""
    return react.prompt(question, [(tool.name_for_model, tool.describe()) for tool in tools])


def is_prompt(text: str) -> bool:
    """Returns whether a user turn is a ReAct prompt."""
    return react.is_prompt(text)


def parse(text: str) -> Transcript:
    """Parses (Thought, Action, Action Input, Observation) repeated, then Thought, Final Answer.

    Raises:
      Malformed: the text has a different format; the error says what is wrong.
    """
    parts = react.LABEL.split(text.strip())
    if parts[0]:
        raise Malformed("text before the first label")
    found = [
        (label, content.strip()) for label, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    steps, start = [], 0  # start: index of the current Thought
    if not found or found[-1][0] != "Final Answer":
        raise Malformed("no Final Answer at the end")
    while start < len(found):
        labels = [label for label, _ in found[start : start + 4]]
        contents = [content for _, content in found[start : start + 4]]
        if labels[:2] == ["Thought", "Final Answer"] and start + 2 == len(found):
            if not contents[1]:
                raise Malformed("an empty Final Answer")
            return Transcript(tuple(steps), contents[0], contents[1])
        if labels != ["Thought", "Action", "Action Input", "Observation"]:
            raise Malformed("labels out of order")
        if not all(contents[1:]):
            raise Malformed("an empty Action, Action Input or Observation")
        steps.append(Step(*contents))
        start += 4
    raise Malformed("labels out of order")


def check_calls(transcript: Transcript, tools: Sequence[Tool]) -> None:
    """Checks that every call names one of the tools and has valid input.

    Raises:
      Malformed: a call is invalid; the error gives the reason for the first one.
    """
    known = {tool.name_for_model: tool for tool in tools}
    for step in transcript.steps:
        tool = known.get(step.action)
        if tool is None:
            raise Malformed("an Action is not one of the tools")
        if not tool.parameters:
            continue
        try:
            arguments = json.loads(step.action_input)
        except (ValueError, RecursionError):
            raise Malformed("an Action Input is not JSON") from None
        if not isinstance(arguments, dict):
            raise Malformed("an Action Input is not a JSON object")
        names = {parameter["name"] for parameter in tool.parameters}
        needed = {parameter["name"] for parameter in tool.parameters if parameter.get("required")}
        if not needed <= arguments.keys():
            raise Malformed("an Action Input without a required parameter")
        if not arguments.keys() <= names:
            raise Malformed("an Action Input with an unknown parameter")


def read_tools(path: str | os.PathLike) -> list[Tool]:
    """Reads tools from a .json list or a .jsonl file with the fields of `Tool`.

    Raises:
      DataError: fields are missing or have the wrong type, or two tools share a name.
    """
    fields = ("name_for_human", "name_for_model", "description_for_model")
    tools = []
    for where, row in read_rows(path):
        texts = [row.get(field) for field in fields]
        parameters = row.get("parameters") or []
        if not all(isinstance(text, str) and text for text in texts) or not (
            isinstance(parameters, list)
            and all(
                isinstance(parameter, dict) and isinstance(parameter.get("name"), str)
                for parameter in parameters
            )
        ):
            raise DataError(
                "this is not a tool description.",
                where,
                "set name_for_human, name_for_model, description_for_model (strings) "
                "and parameters, a list of objects with a name.",
            )
        if texts[1] in {tool.name_for_model for tool in tools}:
            raise DataError(f"two tools are named {texts[1]!r}.", where, "rename one of them.")
        tools.append(Tool(**{field: row[field] for field in fields}, parameters=tuple(parameters)))
    if not tools:
        raise DataError("there are no tools.", str(path), "describe at least one tool.")
    return tools
