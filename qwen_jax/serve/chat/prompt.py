"""The prompt of a conversation by the model's own template, and what its answer may have."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.errors import QwenJaxError
from qwen_jax.serve.api.fields import Fields, short
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects.answer import Thinking
from qwen_jax.tokenizer.template.tokens import reads, render, reserved, source_of


class Ending(enum.Enum):
    """How a prompt ends: with a new turn of the assistant, in its last one, or with no turn."""

    OPENING = "opening"
    CONTINUED = "continued"
    CLOSED = "closed"


def take_ending(fields: Fields) -> Ending:
    """Returns how a prompt is to end: vLLM's add_generation_prompt and continue_final_message.

    Raises:
      ApiError: one is not a boolean, or both are true.
    """
    continued = fields.flag("continue_final_message")
    opening = fields.flag("add_generation_prompt", not continued)
    if continued and opening:
        raise ApiError(
            "the last message cannot be continued and followed by another turn.",
            "add_generation_prompt",
            "set it to false, or omit continue_final_message.",
        )
    return Ending.CONTINUED if continued else Ending.OPENING if opening else Ending.CLOSED


class ChatPrompt(NamedTuple):
    """A prompt, and how its answer begins."""

    tokens: tuple[int, ...]
    thinking: Thinking
    opening: str  # the end of the prompt, from the start of the assistant's turn


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    variables: Mapping[str, Any] | None = None,
    ending: Ending = Ending.OPENING,
) -> ChatPrompt:
    """Returns the prompt for the next turn of the assistant, or for the rest of its last one.

    Args:
      messages, tools: as `Tokenizer.apply_chat_template` takes them.
      variables: further variables of the template, such as enable_thinking.

    Raises:
      ApiError: the template refuses the conversation, or does not have a variable.
    """
    variables = variables or {}
    try:
        source = source_of(tokenizer, tools)
        _check_variables(variables, source)
        found = render(
            tokenizer,
            messages,
            tools,
            variables,
            add_generation_prompt=ending is Ending.OPENING,
            continue_final_message=ending is Ending.CONTINUED,
        )
    except ApiError:
        raise
    except QwenJaxError as error:
        raise ApiError(error.what, error.where, error.fix) from None
    thinking = _thinking(found.opening, source)
    if ending is Ending.CONTINUED and thinking is Thinking.POSSIBLE:  # its answer has begun
        thinking = Thinking.OPEN if _is_thought(found.opening) else Thinking.NEVER
    return ChatPrompt(tuple(found.tokens.tolist()), thinking, found.opening)


def _is_thought(opening: str) -> bool:
    return opening.rfind("<think>") > opening.rfind("</think>")


def _check_variables(variables: Mapping[str, Any], source: str | None) -> None:
    for name in variables:
        if reserved({name: None}) or source is None or not reads(source, name):
            raise ApiError(
                f"the chat template has no variable {short(name)}.",
                f"chat_template_kwargs.{name[:60]}",
                "omit it.",
                code="unknown_parameter",
            )


def _thinking(opening: str, source: str | None) -> Thinking:
    end = opening.rstrip()
    if source is None or "</think>" not in source or end.endswith("</think>"):
        return Thinking.NEVER
    return Thinking.OPEN if end.endswith("<think>") else Thinking.POSSIBLE
