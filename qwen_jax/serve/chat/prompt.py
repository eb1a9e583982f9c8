"""The prompt of a conversation by the model's own template, and what its answer may have.

Names of control tokens in messages stay text. A mark is put inside of each before the template is
rendered; so the tokenizer finds only those that the template wrote. The mark is removed after that.
"""

import enum
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.errors import QwenJaxError
from qwen_jax.serve.api.fields import short
from qwen_jax.serve.errors import ApiError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.added_tokens import Splitter
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.nfc import normalize, well_formed
from qwen_jax.tokenizer.template import builtin
from qwen_jax.tokenizer.template.chat import template_source

_MARK = "\U0010fffb"  # of a private-use area, as the marks of template/jinja.py
_OWN = ("messages", "tools", "documents", "add_generation_prompt", "chat_template")


class Thinking(enum.Enum):
    """Whether an answer begins with thoughts, which </think> ends."""

    NEVER = "never"
    POSSIBLE = "possible"  # if it begins with <think>
    OPEN = "open"  # the prompt ends with <think>


class ChatPrompt(NamedTuple):
    """A prompt, and how its answer begins."""

    tokens: tuple[int, ...]
    thinking: Thinking
    text: str  # the end of the prompt, from the start of the assistant's turn


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
        source = template_source(tokenizer.settings, None, bool(tools))
        _check_variables(variables, source)
        if source is None:
            return _builtin(tokenizer, messages, tools, add_generation_prompt)
        text = tokenizer.apply_chat_template(
            _guard(messages, tokenizer),
            _guard(tools, tokenizer) or None,
            add_generation_prompt,
            **_guard(variables, tokenizer),
        )
    except ApiError:
        raise
    except QwenJaxError as error:
        raise ApiError(error.what, error.where, error.fix) from None
    ids: list[int] = []
    for part in _splitter(tokenizer).split(well_formed(text)):
        ids += [part] if isinstance(part, int) else tokenizer.encode(part.replace(_MARK, ""))
    return ChatPrompt(tuple(ids), _thinking(text, source), text[text.rfind("<|im_start|>") :])


def _check_variables(variables: Mapping[str, Any], source: str | None) -> None:
    for name in variables:
        known = source is not None and re.search(rf"\b{re.escape(name)}\b", source)
        if name in _OWN or not known:
            raise ApiError(
                f"the chat template has no variable {short(name)}.",
                f"chat_template_kwargs.{name[:60]}",
                "omit it.",
                code="unknown_parameter",
            )


def _builtin(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    opening: bool,
) -> ChatPrompt:
    """ChatML and ReAct, encoded part by part as the original code does."""
    turns = builtin.turns(messages, tools)
    if opening and messages[-1]["role"] == "tool":  # the assistant's turn goes on
        ids = chatml.render(turns, tokenizer).tokens
        end, tail = len(ids) - 1 - len(tokenizer.encode("\n")), "\nThought:"
        return ChatPrompt((*ids[:end].tolist(), *tokenizer.encode(tail)), Thinking.NEVER, tail)
    ids = (chatml.prompt if opening else _rendered)(turns, tokenizer)
    return ChatPrompt(tuple(ids.tolist()), Thinking.NEVER, "")


def _rendered(turns, tokenizer: Tokenizer):
    return chatml.render(turns, tokenizer).tokens


def _guard(value: Any, tokenizer: Tokenizer) -> Any:
    """Returns a copy of JSON values in which names of control tokens have a mark inside."""
    names = [token.content for token in tokenizer.added_tokens if token.special]
    found = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")

    def guard(item: Any) -> Any:
        if isinstance(item, str):
            if _MARK in item:
                raise ApiError(
                    "the text has U+10FFFB, which is for private use.", "messages", "remove it."
                )
            return found.sub(lambda name: name[0][0] + _MARK + name[0][1:], item)
        if isinstance(item, Mapping):
            return {guard(key): guard(one) for key, one in item.items()}
        if isinstance(item, (list, tuple)):
            return [guard(one) for one in item]
        return item

    return guard(value)


@functools.lru_cache(maxsize=4)
def _splitter(tokenizer: Tokenizer) -> Splitter:
    return Splitter(tokenizer.added_tokens, normalize if tokenizer.nfc else well_formed)


def _thinking(text: str, source: str) -> Thinking:
    end = text.rstrip()
    if "</think>" not in source or end.endswith("</think>"):
        return Thinking.NEVER
    return Thinking.OPEN if end.endswith("<think>") else Thinking.POSSIBLE
