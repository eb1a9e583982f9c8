"""Conversations -> packed rows for SFT: tokens, targets and what is to be learned. Report: 3.1.1.

A conversation is a segment of its own, with positions from 0: none sees another.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from qwen_jax.data.chat.conversations import Conversation, Counts
from qwen_jax.data.packing import pack
from qwen_jax.errors import DataError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Batch

MASKS: dict[str, Callable[[chatml.Rendered], np.ndarray]] = {
    "assistant": chatml.loss_weights,  # the report's: system and user masked
    "original": chatml.original_loss_weights,  # of the released script: every turn's markers too
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation as tokens."""

    tokens: np.ndarray  # int32 [n + 1]
    weights: np.ndarray  # float32 [n + 1]; 1 where the token is to be learned

    def __len__(self) -> int:
        return len(self.tokens) - 1  # inputs; the last token is a target alone


def encode(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    counts: Counts,
    mask: str = "assistant",
) -> Iterator[Example]:
    """Examples of at most `context_length` inputs; cut on the right, never to nothing to learn.

    What is cut, or dropped because the cut leaves no target, is in `counts`.
    """
    for conversation in conversations:
        rendered = chatml.render(conversation.turns, tokenizer)
        tokens, weights = rendered.tokens, MASKS[mask](rendered)
        if len(tokens) > context_length + 1:
            if not chatml.loss_weights(rendered)[1 : context_length + 1].any():
                counts.kept -= 1
                counts.skip(f"no answer within {context_length} tokens", conversation.place)
                continue
            counts.change(f"cut to {context_length} tokens", conversation.place)
            tokens, weights = tokens[: context_length + 1], weights[: context_length + 1]
        yield Example(tokens, weights)


class PackedRows:
    """Rows of several examples each; row r is a Batch of [T] arrays.

    Attributes:
      efficiency: the share of positions that hold a token.
    """

    def __init__(self, examples: Sequence[Example], *, context_length: int, packed: bool = True):
        """
        Args:
          packed: several to a row where they fit; otherwise one a row.

        Raises:
          DataError: there is no example.
        """
        if not examples:
            raise DataError(
                "there is nothing to learn from.", "data", "look at what was skipped, and why."
            )
        lengths = [len(example) for example in examples]
        self._examples, self._length = examples, context_length
        self._rows = pack(lengths, context_length) if packed else [[i] for i in range(len(lengths))]
        self.efficiency = sum(lengths) / (len(self._rows) * context_length)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Batch:
        if not 0 <= row < len(self._rows):
            raise IndexError(row)
        batch, start = self.padding, 0
        for segment, index in enumerate(self._rows[row], 1):
            example = self._examples[index]
            place = slice(start, start + len(example))
            batch.tokens[place] = example.tokens[:-1]
            batch.targets[place] = example.tokens[1:]
            batch.loss_weights[place] = example.weights[1:]
            batch.segment_ids[place] = segment
            batch.positions[place] = np.arange(len(example))
            start = place.stop
        return batch

    @property
    def padding(self) -> Batch:
        """A row of nothing."""
        whole = [np.zeros(self._length, np.int32) for _ in range(4)]
        return Batch(
            tokens=whole[0],
            targets=whole[1],
            segment_ids=whole[2],
            positions=whole[3],
            loss_weights=np.zeros(self._length, np.float32),
        )

    def __repr__(self) -> str:
        return f"PackedRows({len(self)} of {self._length})"
