"""The chat format of Qwen-1, whose files have no template: ChatML, and ReAct if there are tools.

Qwen-1 has no turns of tools. A call, its result and what follows are one turn of the assistant,
and the last question is posed by a prompt that describes the tools. Report: 3.1.1, 3.4.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.errors import TokenizerError, unknown_name
from qwen_jax.tokenizer.dialects import react
from qwen_jax.tokenizer.dialects.calls import ToolCall

ROLES = ("system", "user", "assistant", "tool")  # "tool": the output of a tool
DEFAULT_SYSTEM = "You are a helpful assistant."
# What the assistant continues: a new turn, or its own after the result of a tool.
OPENING, CONTINUED = "<|im_start|>assistant\n", "\nThought:"
_FINAL = "Thought: I now know the final answer.\nFinal Answer: "

# The same format as a Jinja template, for the files of a model that others load. It has no tools.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for turn in messages %}"
    "{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Messages = Sequence[Mapping[str, Any]]


class Part(NamedTuple):
    """A part of a turn, and the index of the assistant's message that wrote it."""

    text: str
    writer: int = -1  # -1: it is not the assistant's


class Turn(NamedTuple):
    """A turn of ChatML. One of the assistant may have several messages, and results of tools."""

    role: str
    parts: list[Part]

    @property
    def content(self) -> str:
        return "".join(part.text for part in self.parts)


def render(messages: Messages, tools: Messages = (), add_generation_prompt: bool = False) -> str:
    """Returns a conversation as text.

    Args:
      messages, tools: as `Tokenizer.apply_chat_template` takes them.
      add_generation_prompt: whether the assistant is to continue: in its open turn after the
        result of a tool, otherwise in a new turn.

    Raises:
      TokenizerError: a message or the definition of a tool is malformed.
    """
    rendered = turns(messages, tools)
    if rendered[0][0] != "system":
        rendered.insert(0, ("system", DEFAULT_SYSTEM))
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in rendered)
    if not add_generation_prompt:
        return text
    if continues(messages, rendered):
        return text.removesuffix("<|im_end|>\n") + CONTINUED
    return text + OPENING


def continues(messages: Messages, turns: Sequence[tuple[str, str]]) -> bool:
    """Returns whether the assistant goes on in its open turn, after the result of a tool."""
    return messages[-1]["role"] == "tool" and turns[-1][0] == "assistant"


def turns(messages: Messages, tools: Messages = ()) -> list[tuple[str, str]]:
    """Returns the roles and contents of the turns of ChatML. Raises as render does."""
    return [(turn.role, turn.content) for turn in written_turns(messages, tools)]


def written_turns(messages: Messages, tools: Messages = ()) -> list[Turn]:
    """Returns the turns of ChatML, with the message that wrote each part. Raises as render does.

    The model stops before the result of a tool, so `Observation:` is its own, and the result not.
    """
    for index, message in enumerate(messages):
        check_message(message, f"messages[{index}]")
    posed = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=None)
    found: list[Turn] = []
    pending: list[ToolCall] = []  # calls whose results have not come yet
    caller = -1  # the message of these calls
    continued = False  # whether the last turn goes on after the result of a tool
    is_posed = False  # whether the last user's message is a ReAct prompt already
    for index, message in enumerate(messages):
        role, text = message["role"], message.get("content") or ""
        if role == "tool" and _answers_text(messages[:index]):
            found.append(Turn(role, [Part(text)]))  # of a call that is text: a turn of its own
            continued = False
            continue
        if role == "tool":
            _append_result(found, pending, caller, message, f"messages[{index}]")
            continued = True
            continue
        _append_calls(found, pending[1:], caller)
        pending, caller = _calls(message, f"messages[{index}]"), index
        if role == "user" and index == posed and tools:
            text = react.prompt(text, _described(tools))
        elif role == "assistant" and not pending and (tools or continued):
            text = text if text.startswith(("Thought:", "Final Answer:")) else _FINAL + text
        else:
            text = react.write(text, pending[:1])
        if role == "user":
            is_posed = react.is_prompt(message.get("content") or "")
        parts = _transcript(text, index) if is_posed else [Part(text, index)]
        if role == "assistant" and continued:
            found[-1].parts.extend([Part("\n"), *parts])
        else:
            found.append(Turn(role, parts if role == "assistant" else [Part(text)]))
        continued = False
    _append_calls(found, pending[1:], caller)
    return found


def _transcript(text: str, writer: int) -> list[Part]:
    """Returns a transcript in ReAct, in which results of tools have no writer."""
    parts, last = [], 0
    for start, end in react.observations(text):
        parts += [Part(text[last:start], writer), Part(text[start:end])]
        last = end
    return [*parts, Part(text[last:], writer)] if last < len(text) or not parts else parts


def _answers_text(before: Messages) -> bool:
    """Returns whether a result follows a message of the assistant without calls."""
    asked = next((message for message in reversed(before) if message["role"] != "tool"), None)
    return asked is not None and asked["role"] == "assistant" and not asked.get("tool_calls")


def _append_result(
    found: list[Turn],
    pending: list[ToolCall],
    caller: int,
    message: Mapping[str, Any],
    where: str,
) -> None:
    """Appends the result of the first pending call, and writes the next call, if there is one."""
    identity = message.get("tool_call_id")
    if not pending or identity is not None and pending[0].id not in (None, identity):
        raise TokenizerError(
            "the result answers none of the calls before it, or not the next one.",
            where,
            "put results after the message with their calls, in the order of the calls.",
        )
    pending.pop(0)
    found[-1].parts.extend([Part("\nObservation:", caller), Part(f" {message['content']}")])
    _append_calls(found, pending[:1], caller)


def _append_calls(found: list[Turn], calls: Sequence[ToolCall], caller: int) -> None:
    if calls:
        found[-1].parts.append(Part(f"\n{react.write('', calls)}", caller))


def _calls(message: Mapping[str, Any], where: str) -> list[ToolCall]:
    calls = []
    for call in message.get("tool_calls") or ():
        try:
            function = call.get("function", call)
            name, arguments = function["name"], function.get("arguments", {})
        except (AttributeError, KeyError, TypeError):
            name, arguments = None, {}
        if not isinstance(name, str):
            raise TokenizerError(
                f"{str(call)[:80]} is not a call.",
                f"{where}.tool_calls",
                'pass {"function": {"name": ..., "arguments": ...}}.',
            )
        calls.append(ToolCall(name, react.json_text(arguments), call.get("id")))
    return calls


def _described(tools: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    try:
        return [react.describe_function(tool) for tool in tools]
    except (AttributeError, KeyError, TypeError):
        raise TokenizerError(
            "a tool is not the definition of a function.",
            "tools",
            'pass {"type": "function", "function": {"name", "description", "parameters"}}.',
        ) from None


def check_message(message: Mapping[str, Any], where: str) -> None:
    """
    Raises:
      TokenizerError: the role is unknown, or the content is not text.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise unknown_name("role", str(role), ROLES, where, TokenizerError)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise TokenizerError(
            f"the content is not text: {str(content)[:80]}.",
            where,
            "pass a string; images and other parts are not read.",
        )
