"""Items of tool use as training rows, in the three formats that people have such data in.

react      the report's prompt, and one turn with Thought, Action, Observation, Final Answer
messages   OpenAI's: tools, tool_calls, and results in the role "tool"
sharegpt   turns of function_call and observation
"""

import json
from collections.abc import Mapping
from typing import Any

from qwen_jax.data.chat import react
from qwen_jax.errors import unknown_name
from qwen_jax.synthetic.tool_use.questions import Item

FORMATS = ("react", "messages", "sharegpt")
_THOUGHTS = {
    "call": {"en": "I should use the tool {}.", "zh": "我应该使用工具{}。"},
    "none": {
        "en": "None of the tools helps here, so I answer directly.",
        "zh": "这些工具帮不上忙，我直接回答。",
    },
    "last": {"en": "I now know the final answer.", "zh": "我现在知道最终答案了。"},
}


def prompt(item: Item) -> str:
    """Returns the report's prompt."""
    tools = [react.Tool(**{**one, "parameters": tuple(one["parameters"])}) for one in item.tools]
    return react.prompt(item.question, tools)


def transcript(item: Item) -> str:
    """Returns the right answer to the prompt, with the observation of the call."""
    last = _THOUGHTS["last"][item.language]
    if item.tool is None:
        none = _THOUGHTS["none"][item.language]
        return f"Thought: {none}\nFinal Answer: {item.answer}"
    return (
        f"Thought: {_THOUGHTS['call'][item.language].format(item.tool)}\nAction: {item.tool}\n"
        f"Action Input: {written(item.arguments or {})}\n"
        f"Observation: {item.observation}\nThought: {last}\nFinal Answer: {item.answer}"
    )


def written(arguments: Mapping[str, Any]) -> str:
    """Returns arguments as the input of a call."""
    return json.dumps(arguments, ensure_ascii=False)


def row(item: Item, form: str) -> dict[str, Any]:
    """Returns an item as a row of `experiments.sft`.

    Args:
      form: one of FORMATS.

    Raises:
      ConfigError: the format is unknown.
    """
    if form == "react":
        turns = (("user", prompt(item)), ("assistant", transcript(item)))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}
    if form == "messages":
        return {"tools": _functions(item), "messages": _messages(item)}
    if form == "sharegpt":
        return {"tools": json.dumps(_functions(item), ensure_ascii=False), **_sharegpt(item)}
    raise unknown_name("format", form, FORMATS, "--train_format")


def _functions(item: Item) -> list[dict[str, Any]]:
    found = []
    for tool in item.tools:
        properties = {
            one["name"]: {**one["schema"], "description": one["description"]}
            for one in tool["parameters"]
        }
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        function = {"name": tool["name_for_model"], "description": tool["description_for_model"]}
        found.append({"type": "function", "function": function | {"parameters": schema}})
    return found


def _messages(item: Item) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": item.question}]
    if item.tool is not None:
        arguments = written(item.arguments or {})
        call = {"id": "call_0", "type": "function"}
        call |= {"function": {"name": item.tool, "arguments": arguments}}
        thought = _THOUGHTS["call"][item.language].format(item.tool)
        messages += [
            {"role": "assistant", "content": thought, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_0", "content": item.observation},
        ]
    return [*messages, {"role": "assistant", "content": item.answer}]


def _sharegpt(item: Item) -> dict[str, Any]:
    turns = [{"from": "human", "value": item.question}]
    if item.tool is not None:
        call = {"name": item.tool, "arguments": item.arguments}
        turns += [
            {"from": "function_call", "value": json.dumps(call, ensure_ascii=False)},
            {"from": "observation", "value": item.observation},
        ]
    return {"conversations": [*turns, {"from": "gpt", "value": item.answer}]}
