"""Calls as JSON in <tool_call> tags: Qwen2.5 and Qwen3, whose templates call it so after Hermes.

I will look.
<tool_call>
{"name": "weather", "arguments": {"city": "Oslo"}}
</tool_call>
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from qwen_jax.tokenizer.dialects.calls import Dialect, Parsed, ToolCall, json_object

_BLOCK = re.compile(r"\n?<tool_call>(.*?)</tool_call>", re.DOTALL)


def write(text: str, calls: Sequence[ToolCall]) -> str:
    """Returns the content of a turn, as the templates render it."""
    blocks = [text] if text else []
    for call in calls:
        name = json.dumps(call.name, ensure_ascii=False)
        arguments = json.dumps(json_object(call), ensure_ascii=False)
        blocks.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(blocks)


def parse(content: str) -> Parsed:
    """Returns the text and the calls of a turn. A call that cannot be read stays in the text."""
    texts, calls, problems, end = [], [], [], 0
    for block in _BLOCK.finditer(content):
        try:
            calls.append(_call(block[1]))
        except (ValueError, RecursionError) as error:
            problems.append(f"a <tool_call> is not a call: {str(error)[:100]}")
            continue
        texts.append(content[end : block.start()])
        end = block.end()
    rest = content[end:]
    if calls and not rest.strip():
        rest = ""  # templates write nothing but a line end after a call
    texts.append(rest)
    if "<tool_call>" in _BLOCK.sub("", rest):
        problems.append("a <tool_call> has no end")
    return Parsed("".join(texts), tuple(calls), tuple(problems))


def _call(text: str) -> ToolCall:
    found: Any = json.loads(text)
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise ValueError("no object with a name")
    if unknown := found.keys() - {"name", "arguments", "parameters"}:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))[:60]}")
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(found["name"], arguments)


HERMES = Dialect("hermes", write, parse)
