"""Messages and tools as what chat templates take, and as plain turns.

The model reads what the template of its tokenizer makes of them (tokenizer/template). Plain turns
are for readers without a tokenizer: tags, judges, and what identifies a conversation. In them calls
are ReAct, thoughts are in <think>, and tools are described under the system message. Report: 3.1.1.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.data.chat.messages import Message
from qwen_jax.data.chat.rows import Skipped
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects import react
from qwen_jax.tokenizer.dialects.calls import json_object
from qwen_jax.tokenizer.template.tokens import source_of

Turn = tuple[str, str]  # role and content
_READS = {  # what a template has to read -> how its source names it
    "tools": re.compile(r"\btools\b"),
    "calls of tools": re.compile(r"\btool_calls\b"),
    "reasoning next to a text": re.compile(r"\b(reasoning_content|thinking)\b"),
}


def render(messages: Sequence[Message], tools: str = "") -> list[Turn]:
    """Returns one plain turn per message, after a system turn if there are only tools.

    Args:
      messages: a system message, if any, is the first.
      tools: the descriptions of the tools, usually JSON; they end the system turn. "": no tools.
    """
    turns = [
        (message.role, _with_thoughts(message) + react.write(message.text, message.calls))
        for message in messages
    ]
    if not tools:
        return turns
    has_system = bool(turns) and turns[0][0] == "system"
    system = turns.pop(0)[1] if has_system else ""
    return [("system", _with_tools(system, tools)), *turns]


def for_template(
    messages: Sequence[Message], tools: str = ""
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Returns messages and the definitions of tools as a chat template takes them.

    Descriptions of tools that are not JSON objects are text of the system message, which is added
    if there is none.
    """
    found = [_mapping(message) for message in messages]
    definitions = _definitions(tools)
    if tools and definitions is None:
        if not found or found[0]["role"] != "system":
            found.insert(0, {"role": "system", "content": ""})
        found[0]["content"] = _with_tools(found[0]["content"], tools)
    return found, definitions


def check_template(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Checks that the template reads all that a conversation has.

    Raises:
      Skipped: there is something in it that the template would leave out.
    """
    source = source_of(tokenizer, tools)
    present = {
        "tools": bool(tools),
        "calls of tools": any(message.get("tool_calls") for message in messages),
        "reasoning next to a text": any(message.get("reasoning_content") for message in messages),
    }
    for what, named in _READS.items():
        reads = what != "reasoning next to a text" if source is None else named.search(source)
        if present[what] and not reads:
            raise Skipped(f"{what}: the model's chat template has no place for it")


def _mapping(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.reasoning is not None:
        found["reasoning_content"] = message.reasoning
    if message.calls:
        found["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.name, "arguments": json_object(call)},
                **({} if call.id is None else {"id": call.id}),
            }
            for call in message.calls
        ]
    if message.result is not None:
        known = {"tool_call_id": message.result.call_id, "name": message.result.name}
        found |= {key: value for key, value in known.items() if value is not None}
    return found


def _definitions(tools: str) -> list[dict[str, Any]] | None:
    """Returns the definitions of tools in JSON; None: it is text."""
    try:
        found = json.loads(tools)
    except (ValueError, RecursionError):
        return None
    found = found if isinstance(found, list) else [found]
    return found if found and all(isinstance(each, dict) for each in found) else None


def _with_tools(system: str, tools: str) -> str:
    return f"{system}\n\nTools:\n{tools}".strip()


def _with_thoughts(message: Message) -> str:
    return "" if message.reasoning is None else f"<think>\n{message.reasoning}\n</think>\n\n"
