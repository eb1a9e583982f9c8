"""The prompt of a conversation by the model's own template, and what its answer may have."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.errors import QwenJaxError
from qwen_jax.serve.api.fields import short
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects.answer import Thinking
from qwen_jax.tokenizer.template.tokens import reads, render, reserved, source_of


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
    *,
    add_generation_prompt: bool = True,
) -> ChatPrompt:
    """Returns the prompt for the next turn of the assistant.

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
            tokenizer, messages, tools, variables, add_generation_prompt=add_generation_prompt
        )
    except ApiError:
        raise
    except QwenJaxError as error:
        raise ApiError(error.what, error.where, error.fix) from None
    return ChatPrompt(tuple(found.tokens.tolist()), _thinking(found.opening, source), found.opening)


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
