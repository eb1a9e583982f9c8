"""An answer of the model taken apart: thoughts, content and calls, whole or as it arrives."""

import dataclasses
import secrets
from typing import Any, NamedTuple

from qwen_jax.serve.chat.call_stream import (
    CallStream,
    HermesStream,
    Piece,
    ReactStream,
    partial_suffix,
)
from qwen_jax.serve.chat.prompt import Thinking
from qwen_jax.tokenizer.dialects.calls import Dialect, ToolCall, split_reasoning
from qwen_jax.tokenizer.dialects.hermes import HERMES

_OPEN, _CLOSE = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class AnswerFormat:
    """What an answer may have.

    Attributes:
      dialect: how calls are written; None: they are content.
      parallel: whether an answer may have several calls; otherwise those after the first are
        dropped, as OpenAI's parallel_tool_calls says.
    """

    thinking: Thinking = Thinking.NEVER
    dialect: Dialect | None = None
    parallel: bool = True


class Answer(NamedTuple):
    """An answer: its text, and its thoughts if there are any."""

    content: str
    reasoning: str | None
    calls: tuple[ToolCall, ...]


def read_answer(text: str, form: AnswerFormat) -> Answer:
    """Returns the parts of a whole answer; calls have new ids. Malformed calls stay content."""
    reasoning, content = None, text
    if form.thinking is Thinking.OPEN and _CLOSE not in text:
        return Answer("", text.strip().removeprefix(_OPEN).strip("\n"), ())
    begins = text.lstrip().startswith(_OPEN)
    if form.thinking is Thinking.OPEN or form.thinking is Thinking.POSSIBLE and begins:
        reasoning, content = split_reasoning(text)
    if form.dialect is None:
        return Answer(content, reasoning, ())
    found = form.dialect.parse(content)
    calls = found.calls if form.parallel else found.calls[:1]
    named = tuple(dataclasses.replace(call, id=call_id()) for call in calls)
    return Answer(found.text, reasoning, named)


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class AnswerStream:
    """Takes an answer apart as it arrives; the parts together are those of read_answer."""

    def __init__(self, form: AnswerFormat):
        self._form = form
        self._thinking = form.thinking
        self._held = ""  # text that may belong to a tag, or that a rule removes at an end
        self._content_began = form.thinking is Thinking.NEVER
        self._opened = self._thoughts_began = False
        self._calls: CallStream | None = None
        if form.dialect is not None:
            self._calls = HermesStream() if form.dialect is HERMES else ReactStream()
        self._num_calls = 0

    @property
    def thinking(self) -> bool:
        """Whether what comes next are thoughts."""
        return self._thinking is Thinking.OPEN

    def add(self, text: str) -> list[Piece]:
        """Returns the parts that this text completes."""
        pieces = []
        if self._thinking is not Thinking.NEVER:
            pieces, text = self._think(text)
        return pieces + (self._content(text) if text else [])

    def finish(self) -> list[Piece]:
        """Returns what is left at the end of the answer."""
        rest, self._held = self._held, ""
        pieces = []
        if self._thinking is Thinking.OPEN:  # thoughts without an end are all there is
            rest = rest.rstrip() if self._opened else rest.strip()
            pieces += [Piece("reasoning", rest)] if rest else []
        elif rest:  # white space, or the begin of <think>
            self._content_began = True
            pieces += self._content(rest)
        return pieces + (self._only_first(self._calls.finish()) if self._calls else [])

    def _think(self, text: str) -> tuple[list[Piece], str]:
        """Returns thoughts, and what follows them."""
        self._held += text
        if self._thinking is Thinking.POSSIBLE:
            begin = self._held.lstrip()
            if len(begin) < len(_OPEN) and _OPEN.startswith(begin):
                return [], ""
            if not begin.startswith(_OPEN):
                text, self._held = self._held, ""
                self._thinking, self._content_began = Thinking.NEVER, True
                return [], text
            self._thinking = Thinking.OPEN
        if not self._opened:
            begin = self._held.lstrip()
            if len(begin) < len(_OPEN) and _OPEN.startswith(begin):
                return [], ""
            self._opened, self._held = True, begin.removeprefix(_OPEN)
        if not self._thoughts_began:
            self._held = self._held.lstrip("\n")
        thoughts, tag, after = self._held.partition(_CLOSE)
        end = len(thoughts) - (0 if tag else partial_suffix(thoughts, _CLOSE))
        shown = thoughts[:end].rstrip()
        self._held = "" if tag else self._held[len(shown) :]
        self._thoughts_began = self._thoughts_began or bool(shown)
        if tag:
            self._thinking = Thinking.NEVER
        return [Piece("reasoning", shown)] if shown else [], after

    def _content(self, text: str) -> list[Piece]:
        if not self._content_began:
            text = text.lstrip("\n")
            if not text:
                return []
            self._content_began = True
        if self._calls is None:
            return [Piece("content", text)]
        return self._only_first(self._calls.add(text))

    def _only_first(self, pieces: list[Piece]) -> list[Piece]:
        if self._form.parallel:
            return pieces
        shown = []
        for piece in pieces:
            self._num_calls += piece.kind == "name"
            if self._num_calls <= 1 or piece.kind == "content":
                shown.append(piece)
        return shown


class DeltaWriter:
    """Writes parts of an answer as the deltas of OpenAI's streams."""

    def __init__(self):
        self.calls = 0  # that have started

    def delta(self, piece: Piece) -> dict[str, Any]:
        """Returns the delta of a chunk."""
        if piece.kind == "content":
            return {"content": piece.text}
        if piece.kind == "reasoning":
            return {"reasoning_content": piece.text}
        if piece.kind == "name":
            self.calls += 1
            function = {"name": piece.text, "arguments": ""}
            return {
                "tool_calls": [
                    {
                        "index": self.calls - 1,
                        "id": call_id(),
                        "type": "function",
                        "function": function,
                    }
                ]
            }
        return {"tool_calls": [{"index": self.calls - 1, "function": {"arguments": piece.text}}]}
