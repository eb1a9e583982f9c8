"""A model's answers that are remembered: what was asked before is not computed again.

Everything else of a long generation is then a pure function of its settings and of this record, so
that a run that was killed repeats its own steps in a moment and goes on, to the same end.
"""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence

from qwen_jax.data.chat.conversations import Turn
from qwen_jax.inference.request import Completion
from qwen_jax.utils.append_only import AppendOnly

# Conversations and seeds -> (place, answer) as they end; None where there is no room for one.
Model = Callable[[Sequence[Sequence[Turn]], Sequence[int]], Iterator[tuple[int, Completion | None]]]


@dataclasses.dataclass(frozen=True)
class Response:
    """What a model said."""

    text: str
    finish: str  # "stop" if it came to its end; "no room" if it was not asked


class ResponseCache:
    """Asks a model by (round, stage, index), each once.

    Args:
      file: the record; one line an answer.
      model: called when the first answer is missing, and not at all if none is.
      seed: of the run; that of each answer is a function of it and of what is asked for.
      progress: called with (stage, done, of how many) after each new answer.
    """

    def __init__(
        self,
        file: AppendOnly,
        model: Callable[[], Model],
        *,
        seed: int,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ):
        self._file, self._make_model, self._seed = file, model, seed
        self._progress = progress
        self._model: Model | None = None
        # What was asked is a part of the name: with more samples wanted, a round may ask for more.
        self._known = {
            (
                row["round"],
                row["stage"],
                row["index"],
                row.get("conversation", row.get("asked")),
            ): row
            for row in file.rows
        }
        self.new = 0  # answers that were computed

    def rng(self, *name) -> random.Random:
        """A source of chance that is a function of the seed and the name alone."""
        return random.Random("/".join(map(str, (self._seed, *name))))

    def __call__(
        self, round_number: int, stage: str, conversations: Sequence[Sequence[Turn]]
    ) -> list[Response]:
        """The answers, in order."""
        found, missing = {}, []
        for index, conversation in enumerate(conversations):
            row = self._known.get((round_number, stage, index, _digest(conversation)))
            if row is None:
                missing.append(index)
            else:
                found[index] = Response(row["text"], row["finish"])
        if missing:
            self._ask(round_number, stage, conversations, missing, found)
        return [found[index] for index in range(len(conversations))]

    def _ask(
        self,
        round_number: int,
        stage: str,
        conversations: Sequence[Sequence[Turn]],
        missing: list[int],
        found: dict[int, Response],
    ) -> None:
        if self._model is None:
            self._model = self._make_model()
        seeds = [self.rng(round_number, stage, index).getrandbits(32) for index in missing]
        for position, completion in self._model([conversations[index] for index in missing], seeds):
            index = missing[position]
            response = (
                Response("", "no room")
                if completion is None
                else Response(completion.text, completion.finish)
            )
            self._file.add(
                {
                    "round": round_number,
                    "stage": stage,
                    "index": index,
                    "conversation": _digest(conversations[index]),
                    **dataclasses.asdict(response),
                }
            )
            found[index] = response
            self.new += 1
            self._progress(stage, len(found), len(conversations))


def _digest(conversation: Sequence[Turn]) -> str:
    return hashlib.sha256(
        repr([tuple(turn) for turn in conversation]).encode("utf-8", "backslashreplace")
    ).hexdigest()[:16]
