"""The chat format of Qwen-1, whose files have no template: ChatML, and ReAct if there are tools.

Qwen-1 has no turns of tools. A call, its result and what follows are one turn of the assistant,
and the last question is posed by a prompt that describes the tools. Report: 3.1.1, 3.4.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen_jax.errors import TokenizerError, unknown_name
from qwen_jax.tokenizer.dialects import react
from qwen_jax.tokenizer.dialects.calls import ToolCall

ROLES = ("system", "user", "assistant", "tool")  # "tool": the output of a tool
DEFAULT_SYSTEM = "You are a helpful assistant."
_FINAL = "Thought: I now know the final answer.\nFinal Answer: "

Messages = Sequence[Mapping[str, Any]]


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
    if messages[-1]["role"] == "tool":
        return text.removesuffix("<|im_end|>\n") + "\nThought:"
    return text + "<|im_start|>assistant\n"


def turns(messages: Messages, tools: Messages = ()) -> list[tuple[str, str]]:
    """Returns the roles and contents of the turns of ChatML. Raises as render does."""
    for index, message in enumerate(messages):
        _check(message, f"messages[{index}]")
    posed = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=None)
    found: list[tuple[str, str]] = []
    pending: list[ToolCall] = []  # calls whose results have not come yet
    continued = False  # whether the last turn goes on after the result of a tool
    for index, message in enumerate(messages):
        role, text = message["role"], message.get("content") or ""
        if role == "tool":
            _append_result(found, pending, message, f"messages[{index}]")
            continued = True
            continue
        _append_calls(found, pending[1:])
        pending = _calls(message, f"messages[{index}]")
        if role == "user" and index == posed and tools:
            text = react.prompt(text, _described(tools))
        elif role == "assistant" and not pending and (tools or continued):
            text = text if text.startswith(("Thought:", "Final Answer:")) else _FINAL + text
        else:
            text = react.write(text, pending[:1])
        if role == "assistant" and continued:
            found[-1] = (role, f"{found[-1][1]}\n{text}")
        else:
            found.append((role, text))
        continued = False
    _append_calls(found, pending[1:])
    return found


def _append_result(
    found: list[tuple[str, str]], pending: list[ToolCall], message: Mapping[str, Any], where: str
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
    role, text = found[-1]
    found[-1] = (role, f"{text}\nObservation: {message['content']}")
    _append_calls(found, pending[:1])


def _append_calls(found: list[tuple[str, str]], calls: Sequence[ToolCall]) -> None:
    if calls:
        role, text = found[-1]
        found[-1] = (role, f"{text}\n{react.write('', calls)}")


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


def _check(message: Mapping[str, Any], where: str) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise unknown_name("role", str(role), ROLES, where, TokenizerError)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise TokenizerError(
            f"the content is not text: {str(content)[:80]}.",
            where,
            "pass a string; images and other parts are not read.",
        )
