"""Sorts the text of a reply, as it is sampled, into thoughts, calls and the answer."""

from collections.abc import Iterable

from qwen_jax.agent.events import Delta
from qwen_jax.tokenizer.dialects.answer import AnswerFormat, AnswerStream, Thinking
from qwen_jax.tokenizer.dialects.calls import Dialect
from qwen_jax.tokenizer.dialects.react import REACT
from qwen_jax.tokenizer.dialects.stream import Piece


class Deltas:
    """The deltas of one reply. Text that may be the start of a label or a tag is held back."""

    def __init__(self, dialect: Dialect):
        thinking = Thinking.NEVER if dialect is REACT else Thinking.POSSIBLE
        self._answer = AnswerStream(AnswerFormat(thinking, dialect))
        self._kinds = {"reasoning": "thought", "thought": "thought"}
        self._kinds["content"] = "answer" if dialect is REACT else "text"

    def add(self, text: str) -> list[Delta]:
        """Returns what the new text completes."""
        return self._deltas(self._answer.add(text))

    def finish(self) -> list[Delta]:
        """Returns the text that was held back; call this at the end of the reply."""
        return self._deltas(self._answer.finish())

    def _deltas(self, pieces: Iterable[Piece]) -> list[Delta]:
        return [Delta(self._kinds.get(one.kind, "call"), one.raw) for one in pieces if one.raw]
