"""Reads conversations in the common formats: ShareGPT, messages, Alpaca. Report: 3.1.1.

Large files usually contain a few invalid conversations. These are skipped, counted by reason and
reported. A file without a usable conversation is an error.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qwen_jax.data.chat.dialogue import Dialogue, check_format, read_dialogue
from qwen_jax.data.chat.messages import Message
from qwen_jax.data.chat.render import Turn, render
from qwen_jax.data.chat.rows import Counts, Fields, Skipped, read_usable


@dataclasses.dataclass(frozen=True)
class Conversation:
    """[system,] user, assistant, user or tools, ...; the last turn is the assistant's."""

    turns: tuple[Turn, ...]  # plain text, without a template
    where: str  # file and row
    trained: tuple[bool, ...] | None = None  # for each turn; None: all of the assistant's
    dialogue: Dialogue | None = None  # what the template renders; None: the turns

    @property
    def rendered(self) -> Dialogue:
        """What the template renders."""
        messages = tuple(Message(role, text) for role, text in self.turns)
        return self.dialogue or Dialogue(messages)


def read_conversations(
    paths: Iterable[str | os.PathLike], counts: Counts
) -> Iterator[Conversation]:
    """Yields the conversations of .json and .jsonl files; counts skipped rows in `counts`.

    The keys of a row determine its format: "messages" (role, content), "conversations" (from,
    value), or a prompt ("instruction" with "input", "prompt", "question", ...) and its answer
    ("output", "completion", "answer", ...). The row's "system", "tools" and "history" belong to
    all of them. docs/guides/chat_data.md lists all keys.

    Raises:
      DataError: a file is missing, corrupted or in an unknown format, has no usable row, or a mark
        such as "weight" is neither true nor false.
    """

    def parse(fields: Fields, row: dict[str, Any]) -> list[Conversation]:
        check_format(fields, row)
        dialogue = read_dialogue(fields, answer=True)
        turns = render(dialogue.messages, dialogue.tools)
        kept = check_turns(turns)
        if len(kept) < len(turns):
            fields.change("turns after the last response left out")
        added = len(turns) - len(dialogue.messages)  # a system turn that describes tools
        messages = dialogue.messages[: len(kept) - added]
        dialogue = dataclasses.replace(dialogue, messages=messages)
        marks = [*[None] * added, *(message.trained for message in messages)]
        if False not in marks:
            return [Conversation(kept, fields.where, None, dialogue)]
        trained = tuple(
            role == "assistant" and mark is not False
            for (role, _), mark in zip(kept, marks, strict=True)
        )
        if not any(trained):
            raise Skipped("no turn is to be trained on")
        return [Conversation(kept, fields.where, trained, dialogue)]

    return read_usable(paths, counts, "conversations", parse)


def turns_of(row: dict[str, Any], where: str) -> list[Turn]:
    """Returns the turns of a row in any of the formats, before `check_turns`.

    Raises:
      DataError: the row has an unknown format.
      Skipped: a role is unknown, a turn has no text, or a key cannot be used.
    """
    fields = Fields(row, where)
    check_format(fields, row)
    dialogue = read_dialogue(fields, answer=True)
    fields.check_usable()
    return render(dialogue.messages, dialogue.tools)


def check_turns(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Checks the order of roles and drops trailing turns without a response.

    Raises:
      Skipped: there is no response, a response is empty, the first turn is a response, or roles do
        not alternate.
    """
    body = list(turns)
    head = [body.pop(0)] if body and body[0][0] == "system" else []
    while body and body[-1][0] != "assistant":
        body.pop()
    if not body:
        raise Skipped("no assistant turn")
    before = "assistant"
    for role, content in body:
        if role == "system":
            raise Skipped("a system message after the first turn")
        several_results = role == before == "tool"
        if (role == "assistant") == (before == "assistant") and not several_results:
            raise Skipped("roles do not alternate")
        if role == "assistant" and not content.strip():
            raise Skipped("an empty response")
        before = role
    return tuple(head + body)
