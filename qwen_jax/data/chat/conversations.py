"""Conversations from the formats that people have: ShareGPT, messages, Alpaca. Report: 3.1.1.

What is wrong with one conversation of a large file is usual, so it is counted under its reason and
shown, never dropped quietly; what is wrong with a whole file is an error.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.utils.jsonl import read_rows

Turn = tuple[str, str]  # role and content

_ROLES = {  # the words of the formats -> ours
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}


@dataclasses.dataclass(frozen=True)
class Conversation:
    """[system,] user, assistant, user or tool, assistant, ...: it ends with the assistant."""

    turns: tuple[Turn, ...]
    place: str  # where it came from


class Skipped(Exception):
    """One row that is no conversation to learn from, and why."""


@dataclasses.dataclass
class Counts:
    """What became of the rows of a data set."""

    kept: int = 0
    changed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)  # reason -> a place

    def skip(self, reason: str, place: str) -> None:
        self.skipped[reason] += 1
        self.examples.setdefault(reason, place)

    def change(self, reason: str, place: str) -> None:
        self.changed[reason] += 1
        self.examples.setdefault(reason, place)

    def __str__(self) -> str:
        parts = [f"{self.kept:,} kept"]
        for verb, counter in (("", self.changed), ("skipped: ", self.skipped)):
            parts += [
                f"{number:,} {verb}{reason} (first: {self.examples[reason]})"
                for reason, number in counter.most_common()
            ]
        return "; ".join(parts)


def read_conversations(
    paths: Iterable[str | os.PathLike], counts: Counts
) -> Iterator[Conversation]:
    """The conversations of .json and .jsonl files; what is skipped is in `counts`.

    Formats, by a row's keys: "messages" (role, content), "conversations" (from, value),
    "instruction" with "input", "output", "system", "history" (Alpaca). Tools that a row describes
    ("tools") are written under its system message; a tool's answer is a turn of the role "tool".

    Raises:
      DataError: a file is missing, damaged or of no known format, or none of its rows is usable.
    """
    for path in paths:
        before = counts.kept
        for place, row in read_rows(path):
            try:
                turns = check_turns(turns_of(row, place))
            except Skipped as reason:
                counts.skip(str(reason), place)
                continue
            counts.kept += 1
            yield Conversation(turns, place)
        if counts.kept == before:
            raise DataError(
                f"no conversation can be used: {counts}.",
                str(path),
                "look at the first row that is named.",
            )


def turns_of(row: dict[str, Any], place: str) -> list[Turn]:
    """The turns of a row of any of the formats, unchecked.

    Raises:
      DataError: it is of none of them.
      Skipped: an unknown role, or a turn without text.
    """
    if "messages" in row:
        turns = _turns(row["messages"], "role", "content")
    elif "conversations" in row:
        turns = _turns(row["conversations"], "from", "value")
    elif "instruction" in row:
        turns = _alpaca(row)
    else:
        raise DataError(
            f"no known format; the row has {', '.join(map(str, row))}.",
            place,
            "use messages (role, content), conversations (from, value) or "
            "instruction, input, output.",
        )
    if (
        isinstance(row.get("system"), str)
        and row["system"]
        and turns[:1]
        and (turns[0][0] != "system")
    ):
        turns.insert(0, ("system", row["system"]))
    return _with_tools(turns, row.get("tools"))


def check_turns(turns: list[Turn]) -> tuple[Turn, ...]:
    """Turns in an order that can be learned from; a question without an answer at the end is cut.

    Raises:
      Skipped: no answer, two turns of the same side in a row, an answer first, an empty answer.
    """
    body = list(turns)
    head = [body.pop(0)] if body and body[0][0] == "system" else []
    while body and body[-1][0] != "assistant":
        body.pop()
    if not body:
        raise Skipped("without an assistant's turn")
    for place, (role, content) in enumerate(body):
        if role == "system":
            raise Skipped("a system message that is not the first")
        if (role == "assistant") != (place % 2 == 1):
            raise Skipped("broken order of roles")
        if role == "assistant" and not content.strip():
            raise Skipped("an empty answer")
    return tuple(head + body)


def _turns(messages: Any, role_key: str, text_key: str) -> list[Turn]:
    if not isinstance(messages, list):
        raise Skipped("turns that are no list")
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            raise Skipped("a turn that is no object")
        role, text = message.get(role_key), message.get(text_key)
        if message.get("tool_calls") and not text:  # an answer that is a call
            text = json.dumps(message["tool_calls"], ensure_ascii=False)
        if str(role) not in _ROLES:
            raise Skipped(f"unknown role {str(role)[:20]!r}")
        if not isinstance(text, str):
            raise Skipped("a turn without text")
        turns.append((_ROLES[str(role)], text))
    return turns


def _alpaca(row: dict[str, Any]) -> list[Turn]:
    instruction, given, output = (row.get(key) or "" for key in ("instruction", "input", "output"))
    if not all(isinstance(text, str) for text in (instruction, given, output)):
        raise Skipped("a field that is not text")
    turns = []
    for pair in row.get("history") or []:
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            raise Skipped("a history that is not pairs of texts")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    question = f"{instruction}\n{given}" if given else instruction
    return [*turns, ("user", question), ("assistant", output)]


def _with_tools(turns: list[Turn], tools: Any) -> list[Turn]:
    if not tools or tools == "[]":
        return turns
    text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    system = turns[0][1] if turns and turns[0][0] == "system" else ""
    rest = turns[1:] if turns and turns[0][0] == "system" else turns
    return [("system", f"{system}\n\nTools:\n{text}".strip()), *rest]
