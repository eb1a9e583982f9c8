"""Caches model responses on disk: the same request is never computed twice.

All other steps of self-instruct are a pure function of its settings and this cache. A restarted run
therefore replays its steps within moments, resumes, and produces the same samples.
"""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence

from qwen_jax.data.chat.conversations import Turn
from qwen_jax.inference.request import Completion
from qwen_jax.utils.append_only import AppendOnly

# Conversations and seeds -> (index, completion) as they finish; None if one does not fit.
Model = Callable[[Sequence[Sequence[Turn]], Sequence[int]], Iterator[tuple[int, Completion | None]]]


@dataclasses.dataclass(frozen=True)
class Response:
    """A model's response."""

    text: str
    finish: str  # "stop" if complete; "no room" if the model was not queried


class ResponseCache:
    """Queries a model once for each (round, stage, index, conversation).

    Args:
      file: the cache file, with one line per response.
      model: function that loads the model; called only at the first missing response.
      seed: the run's seed; each response's seed is derived from it and the request's name.
      progress: receives (stage, done, total) after each new response.

    Attributes:
      new: the number of responses computed by this process.
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
        # The conversation is part of the key: with another number of samples, a round makes other
        # requests.
        # Caches of earlier versions name its hash "asked".
        self._known = {
            (
                row["round"],
                row["stage"],
                row["index"],
                row.get("conversation", row.get("asked")),
            ): row
            for row in file.rows
        }
        self.new = 0

    def rng(self, *name) -> random.Random:
        """Returns a random number generator that depends only on the seed and the name."""
        return random.Random("/".join(map(str, (self._seed, *name))))

    def __call__(
        self, round_number: int, stage: str, conversations: Sequence[Sequence[Turn]]
    ) -> list[Response]:
        """Returns the response to each conversation, in order."""
        found, missing = {}, []
        for index, conversation in enumerate(conversations):
            row = self._known.get((round_number, stage, index, _digest(conversation)))
            if row is None:
                missing.append(index)
            else:
                found[index] = Response(row["text"], row["finish"])
        if missing:
            self._query(round_number, stage, conversations, missing, found)
        return [found[index] for index in range(len(conversations))]

    def _query(
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
