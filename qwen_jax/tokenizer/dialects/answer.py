"""An answer of the model taken apart: thoughts, content and calls, whole or as it arrives."""

import dataclasses
import enum
from typing import NamedTuple

from qwen_jax.tokenizer.dialects.calls import Dialect, ToolCall, split_reasoning
from qwen_jax.tokenizer.dialects.hermes import HERMES
from qwen_jax.tokenizer.dialects.stream import (
    CallStream,
    HermesStream,
    Piece,
    ReactStream,
    partial_suffix,
)

_OPEN, _CLOSE = "<think>", "</think>"


class Thinking(enum.Enum):
    """Whether an answer begins with thoughts, which </think> ends."""

    NEVER = "never"
    POSSIBLE = "possible"  # if it begins with <think>
    OPEN = "open"  # the prompt ends with <think>


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
    """Returns the parts of a whole answer. Malformed calls stay content."""
    reasoning, content = None, text
    if form.thinking is Thinking.OPEN and _CLOSE not in text:
        return Answer("", text.strip().removeprefix(_OPEN).strip("\n"), ())
    begins = text.lstrip().startswith(_OPEN)
    if form.thinking is Thinking.OPEN or form.thinking is Thinking.POSSIBLE and begins:
        reasoning, content = split_reasoning(text)
    if form.dialect is None:
        return Answer(content, reasoning, ())
    found = form.dialect.parse(content)
    return Answer(found.text, reasoning, found.calls if form.parallel else found.calls[:1])


class AnswerStream:
    """Takes an answer apart as it arrives; the texts together are those of read_answer."""

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
            shown = rest.rstrip() if self._opened else rest.strip()
            pieces += [Piece("reasoning", shown, rest)] if rest else []
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
        pieces: list[Piece] = []
        if not self._opened:
            begin = self._held.lstrip()
            if len(begin) < len(_OPEN) and _OPEN.startswith(begin):
                return [], ""
            self._opened = True
            self._drop(pieces, len(self._held) - len(begin.removeprefix(_OPEN)))
        if not self._thoughts_began:
            self._drop(pieces, len(self._held) - len(self._held.lstrip("\n")))
        thoughts, tag, after = self._held.partition(_CLOSE)
        end = len(thoughts) - (0 if tag else partial_suffix(thoughts, _CLOSE))
        shown = thoughts[:end].rstrip()
        if shown:
            pieces.append(Piece("reasoning", shown, shown))
            self._thoughts_began, self._held = True, self._held[len(shown) :]
        if tag:
            self._drop(pieces, len(self._held) - len(after))
            self._thinking, self._held = Thinking.NEVER, ""
        return pieces, after

    def _drop(self, pieces: list[Piece], length: int) -> None:
        """Releases what is held, up to a length, as raw text of thoughts."""
        if length:
            pieces.append(Piece("reasoning", "", self._held[:length]))
            self._held = self._held[length:]

    def _content(self, text: str) -> list[Piece]:
        pieces = []
        if not self._content_began:
            shown = text.lstrip("\n")
            if len(shown) < len(text):
                pieces.append(Piece("content", "", text[: len(text) - len(shown)]))
            if not shown:
                return pieces
            text, self._content_began = shown, True
        if self._calls is None:
            return [*pieces, Piece("content", text, text)]
        return pieces + self._only_first(self._calls.add(text))

    def _only_first(self, pieces: list[Piece]) -> list[Piece]:
        """Returns pieces in which calls after the first have no text, unless they are wanted."""
        if self._form.parallel:
            return pieces
        shown = []
        for piece in pieces:
            self._num_calls += piece.kind == "name"
            if self._num_calls > 1 and piece.kind in ("name", "arguments"):
                piece = Piece("arguments", "", piece.raw)
            shown.append(piece)
        return shown
