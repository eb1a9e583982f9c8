"""Conversations as text, by the template of a tokenizer's files, or by ChatML and ReAct."""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_jax.errors import TokenizerError, unknown_name
from qwen_jax.tokenizer.settings import Settings
from qwen_jax.tokenizer.template import builtin, jinja

_REASONING = ("reasoning_content", "thinking", "reasoning")  # names that people have, ours first

Messages = Sequence[Mapping[str, Any]]


def apply_chat_template(
    settings: Settings,
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    *,
    chat_template: str | None = None,
    mark_generated: bool = False,
    **variables: Any,
) -> str:
    """Returns a conversation as text. `Tokenizer.apply_chat_template` says what it takes.

    Args:
      mark_generated: whether marks enclose what the model generates; see template/jinja.py.
      variables: further variables of the template.

    Raises:
      TokenizerError: the template refuses the conversation, or jinja2 is not installed.
    """
    plain = plain_messages(messages)
    definitions = None if tools is None else [_plain(tool, "tools") for tool in tools]
    source = template_source(settings, chat_template, bool(definitions))
    if source is None:
        if variables:
            raise TokenizerError(
                f"without a chat template there is no variable {next(iter(variables))}.",
                "apply_chat_template",
                "omit it, or use a tokenizer whose files have a chat template.",
            )
        return builtin.render(plain, definitions or [], add_generation_prompt)
    known = {
        "messages": plain,
        "tools": definitions,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    more = {name: _plain(value, name) for name, value in variables.items()}
    return jinja.render(source, {**settings.named, **known, **more}, mark_generated=mark_generated)


def template_source(settings: Settings, name: str | None, has_tools: bool) -> str | None:
    """Returns the Jinja source that renders a conversation; None: the files have none.

    Args:
      name: one of several templates, or the source of another one.

    Raises:
      TokenizerError: there are several templates, and none is the default.
    """
    templates = settings.chat_templates
    if name is not None:
        return templates.get(name, name)
    if has_tools and "tool_use" in templates:
        return templates["tool_use"]
    if templates and "default" not in templates:
        raise unknown_name(
            "chat template", "default", templates, "apply_chat_template", TokenizerError
        )
    return templates.get("default")


def plain_messages(messages: Messages) -> list[dict[str, Any]]:
    """Returns copies of messages without keys that are null, with one name for reasoning.

    Raises:
      TokenizerError: there are none, or a message is not an object of JSON values.
    """
    found = []
    for index, message in enumerate(messages):
        plain = _plain(message, f"messages[{index}]")
        if not isinstance(plain, dict):
            raise TokenizerError(
                f"{str(message)[:80]!r} is not a message.",
                f"messages[{index}]",
                'pass {"role": ..., "content": ...}.',
            )
        plain = {key: value for key, value in plain.items() if value is not None}
        reasoning = next((plain[key] for key in _REASONING if key in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        found.append(plain)
    if not found:
        raise TokenizerError("there are no messages.", "messages", "pass at least one message.")
    return found


def _plain(value: Any, where: str) -> Any:
    """Returns a copy of JSON values of the plain types; the sandbox knows no others."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TokenizerError(
        f"a chat template takes JSON values, not a {type(value).__name__}.",
        where,
        "pass strings, numbers, lists and dicts.",
    )
