"""The transcript of an agent: written as it goes, replayed to the same bits, made into SFT rows.

A transcript is a JSONL file. Its first line describes the model, the tools and the budgets; then
come the questions, and what happened to them. No line has a time, so a replay writes the same file.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qwen_jax.agent import messages as made
from qwen_jax.agent.events import (
    Answer,
    Call,
    Delta,
    Event,
    Observation,
    Reply,
    Shortened,
    Stopped,
    Thought,
)
from qwen_jax.agent.loop import Budgets, run
from qwen_jax.agent.models.protocol import Messages, Model, Replying
from qwen_jax.agent.tool import Limits, Result, Tool
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.tokenizer.dialects.calls import Dialect
from qwen_jax.tokenizer.dialects.select import DIALECTS
from qwen_jax.utils.jsonl import as_line, read_rows

_VERSION = 1
_KINDS = {
    "reply": Reply,
    "thought": Thought,
    "call": Call,
    "observation": Observation,
    "shortened": Shortened,
    "answer": Answer,
    "stopped": Stopped,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Recorder:
    """Writes a transcript, line by line, so that a killed session leaves what it has done.

    Args:
      path: of a new file.
      model: what identifies the model and its sampling settings, for replays.
      tools: of the session.

    Raises:
      ConfigError: the file exists, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        model: Mapping[str, Any],
        dialect: str,
        tools: Sequence[Tool],
        budgets: Budgets,
        language: str = "en",
    ):
        try:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "xb")
        except OSError as error:
            raise ConfigError(
                f"cannot write the transcript: {error}.", str(path), "name a new file."
            ) from None
        self._write(
            {
                "type": "session",
                "version": _VERSION,
                "model": dict(model),
                "dialect": dialect,
                "language": language,
                "budgets": dataclasses.asdict(budgets),
                "tools": [_described(tool) for tool in tools],
            }
        )

    def question(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Writes the new messages before a turn: of the system, if there is one, and a user."""
        self._write({"type": "question", "messages": list(messages)})

    def record(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yields events and writes all but the deltas, which the reply has in full."""
        for event in events:
            if not isinstance(event, Delta):
                self._write(to_row(event))
            yield event

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(as_line(row))
        self._file.flush()


def to_row(event: Event) -> dict[str, Any]:
    """Returns an event as the row of a transcript."""
    row = {"type": _NAMES[type(event)], **dataclasses.asdict(event)}  # pyright: ignore
    if isinstance(event, Reply):
        del row["parsed"]  # the content has it
    return row


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question of a transcript: the new messages, and the events without deltas."""

    messages: tuple[dict[str, Any], ...]
    rows: tuple[dict[str, Any], ...]
    where: str


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A transcript that was read."""

    model: dict[str, Any]
    dialect: str
    language: str
    budgets: Budgets
    tools: tuple[dict[str, Any], ...]  # fields of Tool that a model sees
    turns: tuple[Turn, ...]


def read(path: str | os.PathLike) -> Transcript:
    """Reads a transcript. An incomplete last line, as a killed session leaves, is left out.

    Raises:
      DataError: the file is missing or is not a transcript.
    """
    rows = list(read_rows(path, bad=[]))
    if not rows or rows[0][1].get("type") != "session" or rows[0][1].get("version") != _VERSION:
        raise DataError(
            "the file is not a transcript of an agent.",
            str(path),
            "pass a file that --record wrote.",
        )
    turns: list[list[Any]] = []
    for where, row in rows[1:]:
        if row.get("type") == "question" and isinstance(row.get("messages"), list):
            turns.append([row["messages"], [], where])
        elif turns and row.get("type") in _KINDS:
            turns[-1][1].append(row)
        else:
            raise DataError(
                f"a line of the type {row.get('type')!r} is not expected here.",
                where,
                "restore the file.",
            )
    first = rows[0][1]
    try:
        return Transcript(
            first["model"],
            first["dialect"],
            first["language"],
            Budgets(**first["budgets"]),
            tuple(first["tools"]),
            tuple(Turn(tuple(found), tuple(events), where) for found, events, where in turns),
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the first line is incomplete: {error}.", str(path), "restore the file."
        ) from None


def replay(path: str | os.PathLike, model: Model) -> Iterator[tuple[int, Event]]:
    """Runs a transcript again, with its recorded results of tools; yields (turn, event).

    The model samples every reply again, and each must be the recorded one, id for id; so must every
    other event. Where the user or a budget of time stopped the recording, or where it was killed,
    the replay stops, too.

    Raises:
      DataError: something differs; the error gives the line and both values.
    """
    transcript = read(path)
    if model.dialect.name != transcript.dialect:
        raise DataError(
            f"the model writes calls as {model.dialect.name}, not as {transcript.dialect}.",
            str(path),
            "replay it with the model that wrote it.",
        )
    messages: list[dict[str, Any]] = []
    # Recorded results are as long as they may be.
    budgets = dataclasses.replace(transcript.budgets, max_seconds=1e9, max_observation=1 << 30)
    for index, turn in enumerate(transcript.turns):
        messages += [dict(message) for message in turn.messages]
        rows = _Rows(turn)
        tools = [rows.tool(fields) for fields in transcript.tools]
        checked = _CheckedModel(model, rows)
        found = run(
            checked,
            tools,
            messages,
            budgets,
            language=transcript.language,
            cancelled=lambda rows=rows: rows.stopped_early(),
        )
        while not rows.ended:
            event = next(found, None)
            if event is None:
                raise rows.too_short()
            if not isinstance(event, Delta):
                event = rows.check(event)
            yield index, event


class _Rows:
    """The recorded events of a turn, in order."""

    def __init__(self, turn: Turn):
        self._turn, self._next = turn, 0
        self._results = {row["call_id"]: row for row in turn.rows if row["type"] == "observation"}

    def peek(self) -> Mapping[str, Any]:
        """Returns the next recorded event."""
        return self._turn.rows[self._next] if self._next < len(self._turn.rows) else {}

    def stopped_early(self) -> bool:
        """Whether what comes next is a stop by the user or by time."""
        row = self.peek()
        return row.get("type") == "stopped" and row.get("reason") in ("cancelled", "seconds")

    def tool(self, fields: Mapping[str, Any]) -> Tool:
        """Returns a tool that gives the recorded results."""

        def run_recorded(arguments: dict[str, Any], limits: Limits) -> Result:
            row = self._results_of(fields["name"])
            return Result(row["text"], row["is_error"], tuple(row["files"]))

        return Tool(run=run_recorded, **fields)

    def _results_of(self, name: str) -> Mapping[str, Any]:
        for call_id, row in list(self._results.items()):
            if row["name"] == name and row["ran"]:
                return self._results.pop(call_id)
        raise RuntimeError("the transcript has no result of this call")

    def check(self, event: Event) -> Event:
        """Returns the event, as it was recorded; raises DataError if it is another one."""
        row, found = self.peek(), to_row(event)
        self._next += 1
        if isinstance(event, Stopped) and row.get("type") == "stopped":
            if event.reason == "cancelled" and row.get("reason") in ("cancelled", "seconds"):
                return Stopped(row["reason"], row["detail"])
        if isinstance(event, Observation) and row.get("type") == "observation":
            # Its length was limited when it was recorded.
            found |= {"left_out": row.get("left_out")}
            event = dataclasses.replace(event, left_out=row.get("left_out", 0))
        found = json.loads(json.dumps(found))
        for key in {**found, **row}:
            if found.get(key) != row.get(key):
                raise DataError(
                    f"the replay differs in event {self._next} of the turn, {key}: "
                    f"{_short(found.get(key))} instead of {_short(row.get(key))}.",
                    self._turn.where,
                    "replay it with the model, the settings and the version that wrote it, on the "
                    "same kind of device.",
                )
        return event

    @property
    def ended(self) -> bool:
        """Whether all recorded events were checked."""
        return self._next >= len(self._turn.rows)

    def too_short(self) -> DataError:
        """Returns the error of a replay without the rest of the events."""
        return DataError(
            f"the replay ended before the recorded {self.peek().get('type')}.",
            self._turn.where,
            "replay it with the model and settings that wrote it.",
        )


class _CheckedModel:
    """A model whose replies must be the recorded ones."""

    def __init__(self, model: Model, rows: _Rows):
        self._model, self._rows = model, rows
        self.dialect, self.feedback_role = model.dialect, model.feedback_role

    def room(self, messages: Messages, tools: Messages) -> int:
        return self._model.room(messages, tools)

    def reply(self, messages: Messages, tools: Messages, *, max_tokens: int, turn: int) -> Replying:
        row = self._rows.peek()
        if row.get("type") != "reply" or row.get("finish") != "cancelled":
            return (yield from self._model.reply(messages, tools, max_tokens=max_tokens, turn=turn))
        content = str(row["content"])
        replying = self._model.reply(messages, tools, max_tokens=max_tokens, turn=turn)
        seen = ""
        while len(seen) < len(content):
            try:
                text = next(replying)
            except StopIteration:
                break
            seen += text
            yield text
        replying.close()
        return Reply(seen, made.parse(self.dialect, seen)[1], None, 0, "cancelled")


def to_sft_rows(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Yields one training row per transcript with an answer: OpenAI's messages with tool calls.

    Messages and tools are those that the agent's prompts were rendered of, so that training reads
    the same ids, with two exceptions. Replies with a call that could not be read are left out, with
    what the model was told about them, and so is what follows the last answer. And all results are
    as long as they were, also those that were left out of later prompts to fit the context.

    Results of tools are messages of the role "tool", which are never trained on. Calls that failed,
    replies of which a call could not be read, and turns without an answer get weight 0.
    """
    transcript = read(path)
    dialect = DIALECTS[transcript.dialect]
    found, answered = [], 0
    for turn in transcript.turns:
        begin = len(found)
        found += [dict(message) for message in turn.messages]
        found += _messages_of(turn, dialect)
        if turn.rows and turn.rows[-1]["type"] == "answer":
            answered = len(found)
        else:
            for message in found[begin:]:
                if message["role"] == "assistant":
                    message["weight"] = 0
    if answered:
        tools = [
            Tool(run=_not_run, **fields).definition(dialect, transcript.language)
            for fields in transcript.tools
        ]
        yield {"messages": found[:answered], "tools": tools}


def _messages_of(turn: Turn, dialect: Dialect) -> Iterator[dict[str, Any]]:
    """Yields the messages of the model and the tools."""
    replies: list[list[Mapping[str, Any]]] = []  # each with the events after it
    for row in turn.rows:
        if row["type"] == "reply":
            replies.append([row])
        elif replies:
            replies[-1].append(row)
    for reply, *events in replies:
        reasoning, parsed = made.parse(dialect, reply["content"])
        calls = [Call(**_fields(row)) for row in events if row["type"] == "call"]
        results = [Observation(**_fields(row)) for row in events if row["type"] == "observation"]
        if calls:
            message = made.with_calls(dialect, parsed, reasoning, calls)
            failed = any(each.is_error for each in results)
            yield message | ({"weight": 0} if failed else {})
            yield from (made.result(each) for each in results if each.call_id)
        elif any(row["type"] == "answer" for row in events):
            yield made.answer(parsed, reasoning)


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "type"}


def _not_run(arguments: dict[str, Any], limits: Limits) -> Result:
    raise RuntimeError("the tool of a transcript does not run")


def _described(tool: Tool) -> dict[str, Any]:
    """Returns the fields of a tool that a model sees."""
    names = ("name", "description", "parameters", "description_zh", "text_parameter")
    return {name: getattr(tool, name) for name in names}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
