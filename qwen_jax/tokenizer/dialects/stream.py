"""Calls of tools as they are generated; `parse` of a dialect reads whole turns.

A call starts when its name and the begin of its arguments are there; arguments then follow as the
model writes them. So a call whose arguments turn out not to be JSON has started already. All other
malformed calls stay content, as in a whole turn.
"""

import json
import re
from typing import NamedTuple, Protocol

from qwen_jax.tokenizer.dialects import hermes


def _begin_of(label: str) -> str:
    return "|".join(re.escape(label[:length]) for length in range(len(label), 0, -1))


_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_HEADER = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*'
    r'(?=\{\s*["}])'
)
_ANSWER = re.compile(r"^Final Answer:[ \t]*", re.MULTILINE)
_ACTION = re.compile(r"^Action:(.*)\nAction Input:", re.MULTILINE)
# An end that may become a label which ends a thought: the begin of one, or an action without input.
_BEGUN = re.compile(
    rf"^(?:{_begin_of('Action:')}|{_begin_of('Final Answer:')})\Z"
    rf"|^Action:.*(?:\n(?:{_begin_of('Action Input:')})?)?\Z",
    re.MULTILINE,
)
_OBSERVATION, _NEXT = "\nObservation:", "\nAction:"


class Piece(NamedTuple):
    """A part of an answer.

    The texts of a kind add up to what a whole answer has; the raw ones of all pieces to what the
    model wrote, with tags, labels and white space. Either may be empty.

    Attributes:
      kind: "content", "reasoning", "name" or "arguments" of a call; "thought" is ReAct's, whose
        text follows as content if a call does. A name starts the next call; arguments belong to the
        call that started last.
    """

    kind: str
    text: str
    raw: str = ""

    @property
    def shown(self) -> bool:
        """Whether a whole answer has it."""
        return bool(self.text) or self.kind == "name"


class CallStream(Protocol):
    """Takes the text of an answer apart as it arrives."""

    def add(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


class HermesStream:
    """Calls as JSON in <tool_call> tags."""

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
        rest, self._held = self._held, ""
        if self._arguments is not None:  # cut off: what there is of the arguments
            return [Piece("arguments", self._arguments.take(rest), rest)] if rest else []
        if self._inside:
            rest = f"{self._lead}{_OPEN}{rest}"
        elif self._after_call and not rest.strip():
            # Templates write nothing but a line end after a call.
            return [Piece("content", "", rest)] if rest else []
        return [Piece("content", rest, rest)] if rest else []

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
            pieces.append(Piece("content", text, text))
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
                pieces.append(Piece("name", name, f"{self._lead}{_OPEN}{header[0]}"))
                self._arguments, self._held = _JsonObject(), self._held[header.end() :]
        text, tag, after = self._held.partition(_CLOSE)
        if self._arguments is not None:
            keep = 0 if tag else partial_suffix(text, _CLOSE)
            held = text[len(text) - keep :]
            part = text[: len(text) - keep]
            if part or tag:
                pieces.append(Piece("arguments", self._arguments.take(part), part + tag))
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
            pieces += [Piece("name", call.name, whole), Piece("arguments", call.arguments)]
            self._after_call = True
        else:
            pieces.append(Piece("content", whole, whole))
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
    """Calls as ReAct."""

    def __init__(self):
        self._held = ""
        self._released = 0  # characters of a thought in `_held` that were released as raw text
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
        if self._state == "end":  # an observation that the model wrote itself
            self._flush(pieces, "thought")
        return pieces

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        rest, raw = self._held, self._held[self._released :]
        if self._state == "header":
            if raw:
                pieces.append(Piece("thought", "", raw))
            if rest and not self._calls:
                pieces.append(Piece("content", rest))
        elif rest:
            kind = "content" if self._state == "answer" else "arguments"
            pieces.append(Piece(kind, rest.strip() if self._empty else rest.rstrip(), rest))
        self._held, self._released = "", 0
        return pieces

    def _header(self, pieces: list[Piece]) -> None:
        """Releases a thought up to an action or the answer."""
        held = self._held
        action, answer = _ACTION.search(held), _ANSWER.search(held)
        if action is not None and (answer is None or action.start() < answer.start()):
            self._thought(pieces, action.start())
            thought = held[: action.start()].strip().removeprefix("Thought:").strip()
            if thought and not self._calls:
                pieces.append(Piece("content", thought))
            pieces.append(Piece("name", action[1].strip(), held[self._released : action.end()]))
            self._state, self._held = "arguments", held[action.end() :]
            self._empty, self._calls, self._released = True, True, 0
        elif answer is not None and not self._calls:
            self._thought(pieces, answer.start())
            pieces.append(Piece("content", "", held[self._released : answer.end()]))
            self._state, self._held, self._released = "answer", held[answer.end() :], 0
        else:
            begun = _BEGUN.search(held, self._released)
            self._thought(pieces, len(held) if begun is None else begun.start())

    def _thought(self, pieces: list[Piece], end: int) -> None:
        if end > self._released:
            pieces.append(Piece("thought", "", self._held[self._released : end]))
            self._released = end

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
        self._held += "\n"
        self._flush(pieces, "arguments")
        self._state, self._held = "header", rest[1:]
        if rest.startswith(_OBSERVATION):
            self._state = "end"
            return False
        self._header(pieces)
        return self._state == "arguments"

    def _release(self, pieces: list[Piece], kind: str, text: str) -> None:
        """Releases text without white space at its ends, which stays held."""
        shown = text.strip() if self._empty else text.rstrip()
        end = len(text.rstrip())
        self._held = text[end:]
        if shown:
            pieces.append(Piece(kind, shown, text[:end]))
            self._empty = False

    def _flush(self, pieces: list[Piece], kind: str) -> None:
        """Releases what is held as raw text."""
        if self._held:
            pieces.append(Piece(kind, "", self._held))
            self._held = ""


def partial_suffix(text: str, mark: str) -> int:
    """Returns the length of the longest proper prefix of `mark` that `text` ends with."""
    most = min(len(mark) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(mark[:n])), 0)
