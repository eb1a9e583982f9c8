"""The prompt of a conversation with tools, as ids: nothing in a message becomes a special token."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.dialects.calls import Dialect
from qwen_jax.tokenizer.dialects.react import REACT
from qwen_jax.tokenizer.dialects.select import dialect_of
from qwen_jax.tokenizer.settings import Settings
from qwen_jax.tokenizer.template import builtin
from qwen_jax.tokenizer.template.chat import plain_messages, template_source

Messages = Sequence[Mapping[str, Any]]

# A private-use character after the first character of a special token's name, while the template
# renders: the name is then not one of the template's own.
_GUARD = "\U0010fff0"


def dialect(settings: Settings) -> Dialect:
    """Returns how the model writes calls: as its template says, otherwise ReAct.

    A ChatML template that knows no tools counts as none: such are those of our exports and of
    Qwen1.5, and ReAct is a prompt in an ordinary turn.

    Raises:
      TokenizerError: the template is of another dialect.
    """
    source = template_source(settings, None, has_tools=True)
    if source is not None and "tools" not in source and "<|im_start|>" in source:
        return REACT
    return dialect_of(settings)


def prompt_ids(tokenizer: Tokenizer, messages: Messages, tools: Messages) -> list[int]:
    """Returns the prompt that the model continues with the assistant's next turn.

    A web page or a file that has `<|im_end|>` in it cannot end a turn: added tokens of the template
    are tokens, and the same text in a message or a tool is text. In messages of the assistant, what
    is not a control token (<think>, <tool_call>) stays one, since the model wrote it.

    Raises:
      TokenizerError: the template refuses the conversation.
    """
    if dialect(tokenizer.settings) is REACT:
        return _builtin_ids(tokenizer, plain_messages(messages), tools)
    added = _any_of(token.content for token in tokenizer.added_tokens)
    control = _any_of(token.content for token in tokenizer.added_tokens if token.special)
    text = tokenizer.apply_chat_template(
        [
            _guarded(message, control if message.get("role") == "assistant" else added)
            for message in messages
        ],
        [_guarded(tool, added) for tool in tools] or None,
        add_generation_prompt=True,
    )
    ids, end = [], 0
    for found in added.finditer(text):
        ids += tokenizer.encode(text[end : found.start()].replace(_GUARD, ""))
        ids.append(tokenizer.special_tokens[found[0]])
        end = found.end()
    return ids + tokenizer.encode(text[end:].replace(_GUARD, ""))


def _builtin_ids(tokenizer: Tokenizer, messages: Messages, tools: Messages) -> list[int]:
    turns = builtin.turns(messages, tools)
    if messages[-1]["role"] != "tool":
        return chatml.prompt(turns, tokenizer).tolist()
    # The model continues its turn after the observation. Text before and after is encoded at once,
    # as in training, because a line end may merge with what is before it.
    role, content = turns.pop()
    opening = [tokenizer.im_start, *tokenizer.encode(role), *tokenizer.encode("\n")]
    before = chatml.render(turns, tokenizer).tokens.tolist() if turns else []
    return [*before, *opening, *tokenizer.encode(f"{content}\nThought:")]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _guarded(value: Any, special: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        value = value.replace(_GUARD, "\ufffd")
        return special.sub(lambda found: found[0][0] + _GUARD + found[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _guarded(one, special) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(one, special) for one in value]
    return value
