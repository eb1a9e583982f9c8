"""Calls of tools as they are generated, in the dialects that tokenizer/dialects reads whole.

A call starts when its name and the begin of its arguments are there; arguments then follow as the
model writes them. So a call whose arguments turn out not to be JSON has started already. All other
malformed calls stay content, as in a whole answer.
"""

import json
import re
from typing import NamedTuple, Protocol

from qwen_jax.tokenizer.dialects import hermes

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_HEADER = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*'
    r'(?=\{\s*["}])'
)
_ANSWER = re.compile(r"^Final Answer:[ \t]*", re.MULTILINE)
_ACTION = re.compile(r"^Action:(.*)\nAction Input:", re.MULTILINE)
_OBSERVATION, _NEXT = "\nObservation:", "\nAction:"


class Piece(NamedTuple):
    """A part of an answer. `kind` is "content", "reasoning", "name" or "arguments" of a call.

    A name starts the next call; arguments belong to the call that started last.
    """

    kind: str
    text: str


class CallStream(Protocol):
    """Takes the text of an answer apart as it arrives."""

    def add(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


class HermesStream:
    """Calls as JSON in <tool_call> tags; dialects/hermes.py reads whole turns."""

    def __init__(self):
        self._held = ""
        self._inside = False  # whether a tag is open
        self._lead = ""  # the line end before the tag, which is content if the call is malformed
        self._arguments: _JsonObject | None = None  # of the call that has started
        self._after_call = False  # whether nothing but white space came since a call

    def add(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._block(pieces) if self._inside else self._content(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        pieces, rest, self._held = [], self._held, ""
        if self._arguments is not None:  # cut off: what there is of the arguments
            if rest := self._arguments.take(rest):
                pieces.append(Piece("arguments", rest))
            return pieces
        if self._inside:
            rest = f"{self._lead}{_OPEN}{rest}"
        elif self._after_call and not rest.strip():
            return pieces  # templates write nothing but a line end after a call
        return [Piece("content", rest)] if rest else []

    def _content(self, pieces: list[Piece]) -> bool:
        """Releases text before a tag; returns whether a tag begins."""
        text, tag, after = self._held.partition(_OPEN)
        if tag:
            self._lead = "\n" if text.endswith("\n") else ""
            text = text.removesuffix("\n")
            self._inside, self._held = True, after
        else:
            keep = partial_suffix(text, _OPEN)
            end = len(text) - keep
            if text[:end].endswith("\n"):
                end -= 1  # it may be the line end before a tag
            if self._after_call and not text[:end].strip():
                end = 0  # it may be the end, which is no content
            text, self._held = text[:end], text[end:]
        if text:
            pieces.append(Piece("content", text))
            self._after_call = False
        return bool(tag)

    def _block(self, pieces: list[Piece]) -> bool:
        """Releases what is inside of a tag; returns whether the tag has ended."""
        if self._arguments is None and (header := _HEADER.match(self._held)):
            try:
                name = json.loads(header[1])
            except ValueError:
                name = None
            if name is not None:
                pieces.append(Piece("name", name))
                self._arguments, self._held = _JsonObject(), self._held[header.end() :]
        text, tag, after = self._held.partition(_CLOSE)
        if self._arguments is not None:
            keep = 0 if tag else partial_suffix(text, _CLOSE)
            held = text[len(text) - keep :]
            if part := self._arguments.take(text[: len(text) - keep]):
                pieces.append(Piece("arguments", part))
            self._held = after if tag else held
            if tag:
                self._inside, self._arguments, self._after_call = False, None, True
            return bool(tag)
        if not tag:
            return False
        whole = f"{self._lead}{_OPEN}{text}{_CLOSE}"
        found = hermes.parse(whole)
        if found.calls:
            (call,) = found.calls
            pieces += [Piece("name", call.name), Piece("arguments", call.arguments)]
            self._after_call = True
        else:
            pieces.append(Piece("content", whole))
            self._after_call = False
        self._inside, self._held = False, after
        return True


class _JsonObject:
    """Finds the end of an object in JSON that arrives in parts."""

    def __init__(self):
        self._depth, self._string, self._escaped, self._done = 0, False, False, False

    def take(self, text: str) -> str:
        """Returns the part of `text` that belongs to the object."""
        if self._done:
            return ""
        for at, character in enumerate(text):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._string = False
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self._done = True
                    return text[: at + 1]
        return text


class ReactStream:
    """Calls as ReAct; dialects/react.py reads whole turns."""

    def __init__(self):
        self._held = ""
        self._state = "header"  # or "answer", "arguments", "end"
        self._empty = True  # nothing of the answer or the arguments was released yet
        self._calls = False

    def add(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        if self._state == "header":
            self._header(pieces)
        if self._state == "answer":
            self._release(pieces, "content", self._held)
        while self._state == "arguments" and self._arguments(pieces):
            pass
        if self._state == "end":
            self._held = ""  # an observation that the model wrote itself
        return pieces

    def finish(self) -> list[Piece]:
        rest, self._held = self._held, ""
        if self._state == "header" and rest and not self._calls:
            return [Piece("content", rest)]
        if self._state == "arguments" and (rest := rest.rstrip() if not self._empty else ""):
            return [Piece("arguments", rest)]
        return []

    def _header(self, pieces: list[Piece]) -> None:
        action, answer = _ACTION.search(self._held), _ANSWER.search(self._held)
        if action is not None and (answer is None or action.start() < answer.start()):
            thought = self._held[: action.start()].strip().removeprefix("Thought:").strip()
            if thought and not self._calls:
                pieces.append(Piece("content", thought))
            pieces.append(Piece("name", action[1].strip()))
            self._state, self._held = "arguments", self._held[action.end() :]
            self._empty, self._calls = True, True
        elif answer is not None and not self._calls:
            self._state, self._held = "answer", self._held[answer.end() :]

    def _arguments(self, pieces: list[Piece]) -> bool:
        """Releases arguments; returns whether the next call begins."""
        ends = [at for mark in (_OBSERVATION, _NEXT) if (at := self._held.find(mark)) >= 0]
        if not ends:
            keep = max(partial_suffix(self._held, mark) for mark in (_OBSERVATION, _NEXT))
            held = self._held[len(self._held) - keep :]
            self._release(pieces, "arguments", self._held[: len(self._held) - keep])
            self._held += held
            return False
        end = min(ends)
        rest = self._held[end:]
        self._release(pieces, "arguments", self._held[:end])
        self._state, self._held = "header", rest[1:]
        if rest.startswith(_OBSERVATION):
            self._state = "end"
            return False
        self._header(pieces)
        return self._state == "arguments"

    def _release(self, pieces: list[Piece], kind: str, text: str) -> None:
        """Releases text without white space at its ends, which stays held."""
        text = text.lstrip() if self._empty else text
        shown = text.rstrip()
        self._held = text[len(shown) :]
        if shown:
            pieces.append(Piece(kind, shown))
            self._empty = False


def partial_suffix(text: str, mark: str) -> int:
    """Returns the length of the longest proper prefix of `mark` that `text` ends with."""
    most = min(len(mark) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(mark[:n])), 0)
