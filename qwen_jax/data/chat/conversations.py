"""Reads conversations in the common formats: ShareGPT, messages, Alpaca. Report: 3.1.1.

Large files usually contain a few invalid conversations. These are skipped, counted by reason and
reported. A file without a usable conversation is an error.
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

_ROLES = {  # role names of the formats -> ours
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
    """[system,] user, assistant, user or tool, assistant, ...; the last turn is the assistant's."""

    turns: tuple[Turn, ...]
    where: str  # file and row


class Skipped(Exception):
    """Raised with the reason why a row is unusable for training."""


@dataclasses.dataclass
class Counts:
    """The numbers of rows of a dataset that were kept, changed and skipped, by reason."""

    kept: int = 0
    changed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)  # reason -> its first row

    def skip(self, reason: str, where: str) -> None:
        self.skipped[reason] += 1
        self.examples.setdefault(reason, where)

    def change(self, reason: str, where: str) -> None:
        self.changed[reason] += 1
        self.examples.setdefault(reason, where)

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
    """Yields the conversations of .json and .jsonl files; counts skipped rows in `counts`.

    The keys of a row determine its format: "messages" (role, content), "conversations" (from,
    value), or "instruction" with "input", "output", "system", "history" (Alpaca). The row's "tools"
    are appended to its system message. A tool's output is a turn with the role "tool".

    Raises:
      DataError: a file is missing, corrupted or in an unknown format, or has no usable row.
    """
    for path in paths:
        before = counts.kept
        for where, row in read_rows(path):
            try:
                turns = check_turns(turns_of(row, where))
            except Skipped as reason:
                counts.skip(str(reason), where)
                continue
            counts.kept += 1
            yield Conversation(turns, where)
        if counts.kept == before:
            raise DataError(
                f"no usable conversations: {counts}.",
                str(path),
                "fix the rows; the first row with each problem is listed.",
            )


def turns_of(row: dict[str, Any], where: str) -> list[Turn]:
    """Returns the turns of a row in any of the formats, before `check_turns`.

    Raises:
      DataError: the row has an unknown format.
      Skipped: a role is unknown, or a turn has no text.
    """
    if "messages" in row:
        turns = _turns(row["messages"], "role", "content")
    elif "conversations" in row:
        turns = _turns(row["conversations"], "from", "value")
    elif "instruction" in row:
        turns = _alpaca(row)
    else:
        raise DataError(
            f"unknown format: the row has the keys {', '.join(map(str, row))}.",
            where,
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
    for index, (role, content) in enumerate(body):
        if role == "system":
            raise Skipped("a system message after the first turn")
        if (role == "assistant") != (index % 2 == 1):
            raise Skipped("roles do not alternate")
        if role == "assistant" and not content.strip():
            raise Skipped("an empty response")
    return tuple(head + body)


def _turns(messages: Any, role_key: str, text_key: str) -> list[Turn]:
    if not isinstance(messages, list):
        raise Skipped("turns are not a list")
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            raise Skipped("a turn is not an object")
        role, text = message.get(role_key), message.get(text_key)
        if message.get("tool_calls") and not text:  # a response that is only a tool call
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
        raise Skipped("a field is not text")
    turns = []
    for pair in row.get("history") or []:
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            raise Skipped("a history is not a list of text pairs")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    prompt = f"{instruction}\n{given}" if given else instruction
    return [*turns, ("user", prompt), ("assistant", output)]


def _with_tools(turns: list[Turn], tools: Any) -> list[Turn]:
    if not tools or tools == "[]":
        return turns
    text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    system = turns[0][1] if turns and turns[0][0] == "system" else ""
    rest = turns[1:] if turns and turns[0][0] == "system" else turns
    return [("system", f"{system}\n\nTools:\n{text}".strip()), *rest]
