"""ReAct as text: tools described, a question asked, thoughts and calls read back. Report: 3.4.

The prompt is the report's:

    Answer the following questions as best you can. You have access to the following tools:
    NAME: Call this tool to interact with the ... API. ...
    Use the following format:
    Question: ... Thought: ... Action: ... Action Input: ... Observation: ... Final Answer: ...
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.utils.jsonl import read_rows

_PROMPT = """\
Answer the following questions as best you can. You have access to the following tools:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: {question}"""
_LABEL = re.compile(
    r"^(Question|Thought|Action Input|Action|Observation|Final Answer):[ \t]*", re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Tool:
    """What a model is told of a tool."""

    name_for_human: str
    name_for_model: str
    description_for_model: str
    # {"name", "description", "required", "schema": {"type": ...}} each; none: the input is plain
    # text, such as code, and not JSON.
    parameters: tuple[dict[str, Any], ...] = ()

    def describe(self) -> str:
        """The line of the prompt about it."""
        text = (
            f"{self.name_for_model}: Call this tool to interact with the "
            f"{self.name_for_human} API. What is the {self.name_for_human} API useful for? "
            f"{self.description_for_model}"
        )
        if not self.parameters:
            return text
        return (
            f"{text} Parameters: {json.dumps(list(self.parameters), ensure_ascii=False)} "
            "Format the arguments as a JSON object."
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
    """What follows a question: calls, if any, the last thought, the answer."""

    steps: tuple[Step, ...]
    thought: str
    final_answer: str


class Malformed(Exception):
    """Text that is no transcript, or calls that its tools would refuse, and why."""


def prompt(question: str, tools: Sequence[Tool]) -> str:
    """The user's turn that asks `question` of a model with `tools`."""
    return _PROMPT.format(
        tools="\n\n".join(tool.describe() for tool in tools),
        question=question,
        names=",".join(tool.name_for_model for tool in tools),
    )


def is_prompt(text: str) -> bool:
    """Whether a user's turn is such a prompt."""
    return text.startswith(_PROMPT[: _PROMPT.index("{")])


def parse(text: str) -> Transcript:
    """(Thought, Action, Action Input, Observation) any number of times, Thought, Final Answer.

    Raises:
      Malformed: anything else, with what is missing or too much.
    """
    pieces = _LABEL.split(text.strip())
    if pieces[0]:
        raise Malformed("text before the first label")
    found = [
        (label, content.strip()) for label, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    steps, begun = [], 0  # place of the thought that is open
    if not found or found[-1][0] != "Final Answer":
        raise Malformed("no Final Answer at the end")
    while begun < len(found):
        labels = [label for label, _ in found[begun : begun + 4]]
        contents = [content for _, content in found[begun : begun + 4]]
        if labels[:2] == ["Thought", "Final Answer"] and begun + 2 == len(found):
            if not contents[1]:
                raise Malformed("an empty Final Answer")
            return Transcript(tuple(steps), contents[0], contents[1])
        if labels != ["Thought", "Action", "Action Input", "Observation"]:
            raise Malformed("labels out of order")
        if not all(contents[1:]):
            raise Malformed("an empty Action, Action Input or Observation")
        steps.append(Step(*contents))
        begun += 4
    raise Malformed("labels out of order")


def check_calls(transcript: Transcript, tools: Sequence[Tool]) -> None:
    """Whether every call names one of the tools, with an input of its form.

    Raises:
      Malformed: the first that does not, and why.
    """
    known = {tool.name_for_model: tool for tool in tools}
    for step in transcript.steps:
        tool = known.get(step.action)
        if tool is None:
            raise Malformed("an Action that is none of the tools")
        if not tool.parameters:
            continue
        try:
            arguments = json.loads(step.action_input)
        except (ValueError, RecursionError):
            raise Malformed("an Action Input that is not JSON") from None
        if not isinstance(arguments, dict):
            raise Malformed("an Action Input that is not a JSON object")
        names = {parameter["name"] for parameter in tool.parameters}
        needed = {parameter["name"] for parameter in tool.parameters if parameter.get("required")}
        if not needed <= arguments.keys():
            raise Malformed("an Action Input without a required parameter")
        if not arguments.keys() <= names:
            raise Malformed("an Action Input with an unknown parameter")


def read_tools(path: str | os.PathLike) -> list[Tool]:
    """Tools of a .json list or .jsonl file, in the fields of `Tool`.

    Raises:
      DataError: fields that are missing or of another form, or one name for two tools.
    """
    fields = ("name_for_human", "name_for_model", "description_for_model")
    tools = []
    for place, row in read_rows(path):
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
                "this is no description of a tool.",
                place,
                "give name_for_human, name_for_model, description_for_model (texts) "
                "and parameters, a list of objects with a name.",
            )
        if texts[1] in {tool.name_for_model for tool in tools}:
            raise DataError(f"{texts[1]!r} is the name of two tools.", place, "rename one.")
        tools.append(Tool(**{field: row[field] for field in fields}, parameters=tuple(parameters)))
    if not tools:
        raise DataError("there are no tools.", str(path), "describe one or more.")
    return tools
