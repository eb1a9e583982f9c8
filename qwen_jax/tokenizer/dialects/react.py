"""Calls as ReAct, which is what Qwen-1 is trained on. Report: 3.4.

    Thought: Let me look.
    Action: weather
    Action Input: {"city": "Oslo"}
    Observation: 3 degrees
    Thought: I now know the final answer.
    Final Answer: It is cold.

The model writes all but the observations, and stops before them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.tokenizer.dialects.calls import Dialect, Parsed, ToolCall

PROMPT = """\
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
LABEL = re.compile(
    r"^(Question|Thought|Action Input|Action|Observation|Final Answer):[ \t]*", re.MULTILINE
)
_CALL = re.compile(r"^Action:(.*)\nAction Input:((?:.|\n)*?)(?=\nObservation:|\nAction:|\Z)", re.M)
_OBSERVATION = re.compile(
    r"(?<=^Observation:)(?:.|\n)*?(?:\n(?=(?:Thought|Action|Final Answer):)|\Z)", re.MULTILINE
)
_ANSWER = re.compile(r"^Final Answer:[ \t]*", re.MULTILINE)


def describe(
    name: str, description: str, parameters: Sequence[Mapping[str, Any]], human_name: str
) -> str:
    """Returns a tool's line in the prompt. Without parameters, its input is plain text."""
    text = (
        f"{name}: Call this tool to interact with the {human_name} API. What is the {human_name} "
        f"API useful for? {description}"
    )
    if not parameters:
        return text
    listed = json.dumps(list(parameters), ensure_ascii=False)
    return f"{text} Parameters: {listed} Format the arguments as a JSON object."


def prompt(question: str, tools: Sequence[tuple[str, str]]) -> str:
    """Returns the user turn that poses `question`. A tool is its name and its description."""
    return PROMPT.format(
        tools="\n\n".join(description for _, description in tools),
        question=question,
        names=",".join(name for name, _ in tools),
    )


def is_prompt(text: str) -> bool:
    """Returns whether a user's turn is posed by `prompt`."""
    return text.startswith(PROMPT[: PROMPT.index("{")])


def observations(text: str) -> list[tuple[int, int]]:
    """Returns (start, end) of each result of a tool in a transcript: what no model writes.

    The label `Observation:` is the model's, which stops behind it. A result ends before the next
    label of the model, since labels in results are indented when an agent writes them.
    """
    return [found.span() for found in _OBSERVATION.finditer(text)]


def describe_function(tool: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the name and the line of a tool that is defined by a JSON schema, as in OpenAI's API.

    Raises:
      KeyError, TypeError, AttributeError: it is not such a definition.
    """
    function = tool.get("function", tool)
    schema = function.get("parameters") or {}
    required = schema.get("required") or ()
    parameters = []
    for name, of_one in (schema.get("properties") or {}).items():
        rest = {key: value for key, value in of_one.items() if key != "description"}
        parameters.append(
            {
                "name": name,
                "description": of_one.get("description", ""),
                "required": name in required,
                "schema": rest,
            }
        )
    name = function["name"]
    return name, describe(name, function.get("description", ""), parameters, name)


def json_text(arguments: Any) -> str:
    """Returns arguments as text: JSON, unless they are text already."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def write(text: str, calls: Sequence[ToolCall]) -> str:
    """Returns the content of a turn that ends with its calls; without calls, the text."""
    if not calls:
        return text
    text = text.strip()
    lines = [text if text.startswith("Thought:") else f"Thought: {text}"] if text else []
    for call in calls:
        lines += [f"Action: {call.name}", f"Action Input: {call.arguments}"]
    return "\n".join(lines)


def parse(content: str) -> Parsed:
    """Returns the thought and the calls of a turn, or its final answer.

    What follows an observation that the model wrote itself is left out, and is a problem.
    """
    found = list(_CALL.finditer(content))
    answer = _ANSWER.search(content)
    if not found or answer and answer.start() < found[0].start():
        if answer is not None:
            return Parsed(content[answer.end() :].strip(), ())
        begun = re.search(r"^Action:", content, re.MULTILINE)
        return Parsed(content, (), ("an Action has no input",) if begun else ())
    own = content.find("\nObservation:", found[0].start())
    calls = tuple(
        ToolCall(call[1].strip(), call[2].strip())
        for call in found
        if own < 0 or call.start() < own
    )
    invented = own >= 0 and bool(content[own:].removeprefix("\nObservation:").strip())
    problems = ("the model wrote an observation itself; it is left out",) if invented else ()
    thought = content[: found[0].start()].strip().removeprefix("Thought:").strip()
    return Parsed(thought, calls, problems)


REACT = Dialect("react", write, parse, stops=("\nObservation:",))
