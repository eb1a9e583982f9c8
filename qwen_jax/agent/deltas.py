"""Sorts the text of a reply, as it is sampled, into thoughts, calls and the answer."""

import re

from qwen_jax.agent.events import Delta
from qwen_jax.tokenizer.dialects.calls import Dialect

_LABELS = {
    "Thought:": "thought",
    "Action:": "call",
    "Action Input:": "call",
    "Final Answer:": "answer",
}
_TAGS = {
    "<think>": "thought",
    "</think>": "text",
    "<tool_call>": "call",
    "</tool_call>": "text",
}
_LABEL = re.compile(r"^(?:" + "|".join(map(re.escape, _LABELS)) + ")", re.MULTILINE)
_TAG = re.compile("|".join(map(re.escape, _TAGS)))


class Deltas:
    """The deltas of one reply. Text that may be the start of a label or a tag is held back."""

    def __init__(self, dialect: Dialect):
        self._react = dialect.name == "react"
        self._kind = "thought" if self._react else "text"
        self._held, self._line_start = "", True

    def add(self, text: str) -> list[Delta]:
        """Returns what the new text completes."""
        return self._split(self._held + text, final=False)

    def finish(self) -> list[Delta]:
        """Returns the text that was held back; call this at the end of the reply."""
        return self._split(self._held, final=True)

    def _split(self, text: str, *, final: bool) -> list[Delta]:
        keep = 0 if final else self._maybe_begun(text)
        text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        found, end = [], 0
        for match in (_LABEL if self._react else _TAG).finditer(text):
            if self._react and not (self._line_start or match.start()):
                continue
            closes = match[0].startswith("</")  # a closing tag belongs to what it closes
            at = match.end() if closes else match.start()
            self._append(found, text[end:at])
            self._kind, end = (_LABELS if self._react else _TAGS)[match[0]], at
        self._append(found, text[end:])
        if text:
            self._line_start = text.endswith("\n")
        return found

    def _append(self, found: list[Delta], text: str) -> None:
        if text:
            found.append(Delta(self._kind, text))

    def _maybe_begun(self, text: str) -> int:
        """Returns the length of the end of `text` that may be the start of a label or a tag."""
        if not self._react:
            start = text.rfind("<")
            tail = text[start:] if start >= 0 else ""
            return len(tail) if any(tag.startswith(tail) for tag in _TAGS if tail) else 0
        start = text.rfind("\n") + 1
        if not start and not self._line_start:
            return 0
        tail = text[start:]
        return len(tail) if any(label.startswith(tail) for label in _LABELS if tail) else 0
