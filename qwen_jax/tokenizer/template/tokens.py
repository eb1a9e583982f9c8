"""A conversation as tokens, by the template of the tokenizer: for training, agents and the server.

Names of control tokens in messages and tools stay text, so nothing that somebody writes ends a turn
or begins one. In the results of tools, which are pages and files of others, so do the names of all
added tokens: </tool_response> there ends nothing. Otherwise the ids are those of the whole text, as
`transformers` encodes it: a template is rendered with a character inside of each such name, which
is then removed again.

Without a template it is ChatML as in tokenizer/chatml.py, and ReAct if there are tools.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qwen_jax.errors import ConfigError, TokenizerError
from qwen_jax.tokenizer import chatml, generation_config
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import builtin, jinja
from qwen_jax.tokenizer.template.chat import apply_chat_template, plain_messages, template_source

Messages = Sequence[Mapping[str, Any]]

_RESERVED = frozenset(
    "tokenizer messages tools num_prompt trained chat_template add_generation_prompt "
    "mark_generated settings".split()
)
VARIABLES_HELP = (
    """variables of the chat template as JSON, such as '{"enable_thinking": false}'; """
    "None: its own defaults"
)
# Private-use characters that may stand inside of the name of a control token.
_MARKS = [chr(code) for code in range(0x10FF00, 0x10FFF0)]


class Prompt(NamedTuple):
    """A conversation as tokens, and the text that its last turn begins with.

    Attributes:
      tokens: int32 [T].
      opening: from the last <|im_start|> of the template to the end; without a template, what is
        between the last message and the completion.
    """

    tokens: np.ndarray
    opening: str


def prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Any],
    tools: Messages | None = None,
    **variables: Any,
) -> np.ndarray:
    """Returns the prompt for the next turn of the assistant, int32 [T].

    Args:
      messages: as `Tokenizer.apply_chat_template` takes them, or pairs of role and content.
      tools, variables: as `Tokenizer.apply_chat_template` takes them.

    Raises:
      TokenizerError: a message is malformed, the template refuses the conversation, or jinja2 is
        not installed.
    """
    return render(tokenizer, messages, tools, variables).tokens


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Any],
    tools: Messages | None = None,
    variables: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> Prompt:
    """Returns a conversation, by default as the prompt for the next turn of the assistant.

    Args:
      add_generation_prompt: whether a turn of the assistant begins at the end.
      continue_final_message: whether the last message, which is the assistant's text, stays open
        instead.

    Raises as `prompt` does.
    """
    messages, variables = as_mappings(messages), variables or {}
    if continue_final_message:
        add_generation_prompt = False
        _check_open(messages)
    if source_of(tokenizer, tools) is None:
        check_variables(tokenizer, variables)
        if continue_final_message:
            return _open_turn(tokenizer, messages, tools or ())
        return _builtin(tokenizer, messages, tools or (), add_generation_prompt)
    rendered = Rendered(tokenizer, messages, tools, variables)
    if continue_final_message:
        text = rendered.open_text()
    else:
        text = rendered.text(add_generation_prompt=add_generation_prompt)
    tokens = np.array(rendered.encode(text), np.int32)
    return Prompt(tokens, text[max(0, text.rfind("<|im_start|>")) :])


def as_mappings(messages: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Returns messages as mappings; pairs of role and content become one.

    Raises:
      TokenizerError: a message is malformed, its role is unknown, or its content is not text.
    """
    found: list[Mapping[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            message = dict(zip(("role", "content"), chatml.parse(message, index), strict=True))
        builtin.check_message(message, where)
        found.append(message)
    if not found:
        raise TokenizerError("there are no messages.", "messages", "pass at least one message.")
    return found


def source_of(tokenizer: Tokenizer, tools: Messages | None = None) -> str | None:
    """Returns the Jinja template of the tokenizer; None: its format is the built-in one.

    That is so for Qwen-1, whose files have no template, also if they were exported with ours.
    """
    source = template_source(tokenizer.settings, None, bool(tools))
    return None if source == builtin.CHAT_TEMPLATE else source


def reserved(variables: Mapping[str, Any]) -> list[str]:
    """Returns the names of variables that have another way into a template."""
    return sorted(_RESERVED & variables.keys())


def parse_variables(text: str | None, flag: str) -> dict[str, Any]:
    """Returns variables of a chat template from JSON, such as '{"enable_thinking": false}'.

    Args:
      text: the value of a flag; None: there are none.

    Raises:
      ConfigError: it is not a JSON object, or has a name that is no variable.
    """
    try:
        found = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{str(text)[:80]!r} is not a JSON object.",
            flag,
            f"""write {flag}='{{"enable_thinking": false}}'.""",
        )
    if names := reserved(found):
        raise ConfigError(f"{names[0]} is no variable of a chat template.", flag, "omit it.")
    return found


def check_variables(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> None:
    """Compiles the template, if there is one.

    Raises:
      TokenizerError: the template is malformed, jinja2 is not installed, or there are variables and
        no template that reads them.
    """
    if (source := source_of(tokenizer)) is not None:
        jinja.compiled(source)
        sources = tokenizer.settings.chat_templates.values()
        for name in variables:
            if not any(reads(each, name) for each in sources):
                raise TokenizerError(
                    f"the chat template has no variable {name}.",
                    "chat_template_kwargs",
                    "check its spelling, or omit it.",
                )
    elif variables:
        raise TokenizerError(
            f"without a chat template there is no variable {next(iter(variables))}.",
            "chat_template_kwargs",
            "omit it, or use a tokenizer whose files have a chat template.",
        )


def reads(source: str, name: str) -> bool:
    """Returns whether the source of a template has a name."""
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids that end a response, those of generation_config.json first.

    Then comes the end token that the tokenizer names. <|im_end|> and <|endoftext|> are always among
    them: the former ends a turn also if a base model's file does not know it yet, and the latter is
    what base models write.
    """
    listed = generation_config.eos_ids(tokenizer.settings)
    named = [] if (eos := tokenizer.token_id("eos_token")) is None else [eos]
    return tuple(dict.fromkeys([*listed, *named, *chatml.stop_ids(tokenizer)]))


def text_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids that end a text: <|endoftext|>, and those of generation_config.json."""
    listed = generation_config.eos_ids(tokenizer.settings)
    return tuple(dict.fromkeys([tokenizer.end_of_text, *listed]))


class Rendered:
    """A conversation that a Jinja template renders, whole or up to one of its messages.

    Args:
      messages, tools, variables: as in `prompt`.

    Raises:
      TokenizerError: the template does something with the texts of messages that depends on
        the names of control tokens in them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: Messages,
        tools: Messages | None,
        variables: Mapping[str, Any],
    ):
        self._tokenizer, self._settings = tokenizer, tokenizer.settings
        self.source = source_of(tokenizer, tools)
        self._control = _any_of(t.content for t in tokenizer.added_tokens if t.special)
        self._added = _any_of(t.content for t in tokenizer.added_tokens)
        plain, definitions = plain_messages(messages), list(tools or ()) or None
        self.messages, self._tools, self._variables = values = plain, definitions, dict(variables)
        text = json.dumps(values, ensure_ascii=False, default=str)
        self._mark = _mark_outside_of(text) if self._added.search(text) else ""
        guarded = (
            [self._guarded(message) for message in plain],
            self._marked(definitions, self._control),
            self._marked(self._variables, self._control),
        )
        if guarded != values:
            unmarked = self.text()
            self.messages, self._tools, self._variables = guarded
            if self.text().replace(self._mark, "") != unmarked:
                raise TokenizerError(
                    "the chat template depends on the name of a control token in a text.",
                    "messages",
                    "remove the names of special tokens, such as <|im_end|>, from the messages.",
                )

    def text(
        self,
        number: int | None = None,
        *,
        add_generation_prompt: bool = False,
        mark_generated: bool = False,
    ) -> str:
        """Returns the text of the first `number` messages, with the marks inside of names."""
        return apply_chat_template(
            self._settings,
            self.messages[:number],
            self._tools,
            add_generation_prompt,
            mark_generated=mark_generated,
            **self._variables,
        )

    def open_text(self) -> str:
        """Returns the text up to the end of the last message's content, with the marks inside."""
        last, known = self.messages[-1], (self.messages, self._tools, self._variables)
        end = _mark_outside_of(json.dumps(known, ensure_ascii=False, default=str))
        messages = [*self.messages[:-1], last | {"content": last["content"] + end}]
        text = apply_chat_template(self._settings, messages, self._tools, **self._variables)
        text, found, _ = text.rpartition(end)
        if not found:
            raise TokenizerError(
                "the chat template leaves out the end of the last message.",
                f"messages[{len(messages) - 1}]",
                "do not continue the last message with this template.",
            )
        return text

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text of this conversation."""
        ids = []
        for part in self._tokenizer.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._tokenizer.encode(self._unmarked(part))
        return ids

    def bytes_of(self, text: str) -> int:
        """Returns the bytes of the text of `encode(text)`."""
        sizes = self._tokenizer.token_sizes
        return sum(
            int(sizes[part]) if isinstance(part, int) else len(self._unmarked(part).encode("utf-8"))
            for part in self._tokenizer.split(text)
        )

    def end_of_turn(self, text: str, start: int) -> int:
        """Returns where the turn that is open at `start` ends, behind its control token.

        The end of the text, if there is no control token.
        """
        found = self._control.search(text, start)
        return len(text) if found is None else found.end()

    def with_end(self, text: str, start: int, end: int) -> int:
        """Returns the end of a part with the control token that follows it, if it has none yet."""
        if self._control.search(text, start, end):
            return end
        found = self._control.match(text, end)
        return end if found is None else found.end()

    def _unmarked(self, text: str) -> str:
        return text.replace(self._mark, "") if self._mark else text

    def _guarded(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return self._marked(message, self._added if message["role"] == "tool" else self._control)

    def _marked(self, value: Any, names: re.Pattern[str]) -> Any:
        """Returns JSON values with the mark behind the first character of each name."""
        if isinstance(value, str):
            return names.sub(lambda name: name[0][0] + self._mark + name[0][1:], value)
        if isinstance(value, Mapping):
            return {
                self._marked(key, names): self._marked(item, names) for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._marked(item, names) for item in value]
        return value


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _mark_outside_of(text: str) -> str:
    for mark in _MARKS:
        if mark not in text:
            return mark
    raise TokenizerError(
        f"the messages have all {len(_MARKS)} characters that keep names of tokens apart.",
        "messages",
        "remove U+10FF00 to U+10FFEF, which are for private use.",
    )


def _check_open(messages: Messages) -> None:
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls") or not last["content"]:
        raise TokenizerError(
            "the last message is not a text of the assistant, which could be continued.",
            f"messages[{len(messages) - 1}]",
            "end with a message of the assistant that has content and no calls.",
        )


def _open_turn(tokenizer: Tokenizer, messages: Messages, tools: Messages) -> Prompt:
    turns = builtin.turns(plain_messages(messages), tools)
    rendered = chatml.render(turns, tokenizer)
    opening = builtin.OPENING + turns[-1][1]
    return Prompt(rendered.tokens[: rendered.spans[-1].end - 1], opening)


def _builtin(
    tokenizer: Tokenizer, messages: Messages, tools: Messages, add_generation_prompt: bool
) -> Prompt:
    turns = builtin.turns(plain_messages(messages), tools)
    if not add_generation_prompt:
        return Prompt(chatml.render(turns, tokenizer).tokens, "")
    if not builtin.continues(messages, turns):
        return Prompt(chatml.prompt(turns, tokenizer), builtin.OPENING)
    # The assistant goes on in its turn after the result of a tool. The turn is encoded at once, as
    # in training, because a line end may merge with what is before it.
    role, content = turns.pop()
    rendered = chatml.render([*turns, (role, content + builtin.CONTINUED)], tokenizer)
    return Prompt(rendered.tokens[: rendered.spans[-1].end - 1], builtin.CONTINUED)
