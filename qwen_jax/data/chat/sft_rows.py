"""Packs conversations into SFT sequences with tokens, targets and loss weights. Report: 3.1.1.

Each conversation is its own segment with positions from 0; attention does not cross conversations.
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
    "assistant": chatml.loss_weights,  # as in the report: no loss on system and user turns
    "original": chatml.original_loss_weights,  # as in the released script: also all markers
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation as tokens."""

    tokens: np.ndarray  # int32 [n + 1]
    weights: np.ndarray  # float32 [n + 1]; 1 where the token is in the loss

    def __len__(self) -> int:
        return len(self.tokens) - 1  # inputs; the last token is only a target


def encode(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    counts: Counts,
    mask: str = "assistant",
) -> Iterator[Example]:
    """Yields examples of at most `context_length` inputs, truncated on the right.

    Conversations without a response token within this length are skipped. Truncated and skipped
    conversations are counted in `counts`.
    """
    for conversation in conversations:
        rendered = chatml.render(conversation.turns, tokenizer)
        keep = _trained(conversation, rendered)
        tokens, weights = rendered.tokens, MASKS[mask](rendered) * keep
        if len(tokens) > context_length + 1:
            if not (chatml.loss_weights(rendered) * keep)[1 : context_length + 1].any():
                counts.kept -= 1
                counts.skip(
                    f"no response within {context_length} tokens (--data.context_length)",
                    conversation.where,
                )
                continue
            counts.change(
                f"truncated to {context_length} tokens (--data.context_length)", conversation.where
            )
            tokens, weights = tokens[: context_length + 1], weights[: context_length + 1]
        yield Example(tokens, weights)


def trained_bytes(examples: Iterable[Example], tokenizer: Tokenizer) -> int:
    """Returns the bytes of UTF-8 text in the loss. Special tokens, such as <|im_end|>, are none."""
    sizes = np.zeros(tokenizer.vocab_size, np.int64)
    for token, number in tokenizer.mergeable_ranks.items():
        sizes[number] = len(token)
    return sum(int(sizes[e.tokens[1:][e.weights[1:] > 0]].sum()) for e in examples)


def _trained(conversation: Conversation, rendered: chatml.Rendered) -> np.ndarray:
    """Returns 0 for the tokens of responses that the row excludes from the loss, and 1 elsewhere.

    float32 [T]. Excluded are also the markers of these turns.
    """
    keep = np.ones(len(rendered.tokens), np.float32)
    if conversation.trained is None:
        return keep
    starts = [0, *(span.end + 1 for span in rendered.spans)]  # of messages, with their markers
    without_default = len(rendered.spans) - len(conversation.turns)
    for index, trained in enumerate(conversation.trained, without_default):
        if rendered.spans[index].role == "assistant" and not trained:
            keep[starts[index] : starts[index + 1]] = 0
    return keep


class PackedRows:
    """Training sequences of one or several examples each; item r is a Batch of [T] arrays.

    Attributes:
      efficiency: fraction of positions that hold a token.
    """

    def __init__(self, examples: Sequence[Example], *, context_length: int, packed: bool = True):
        """
        Args:
          packed: whether to pack several examples into a sequence; otherwise each gets its own.

        Raises:
          DataError: there is no example.
        """
        if not examples:
            raise DataError(
                "there are no examples to train on.", "data", "check why rows were skipped."
            )
        lengths = [len(example) for example in examples]
        self._examples, self._length = examples, context_length
        self._rows = pack(lengths, context_length) if packed else [[i] for i in range(len(lengths))]
        self.efficiency = sum(lengths) / (len(self._rows) * context_length)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self._rows):
            raise IndexError(index)
        batch, start = self.padding, 0
        for segment, member in enumerate(self._rows[index], 1):
            example = self._examples[member]
            span = slice(start, start + len(example))
            batch.tokens[span] = example.tokens[:-1]
            batch.targets[span] = example.tokens[1:]
            batch.loss_weights[span] = example.weights[1:]
            batch.segment_ids[span] = segment
            batch.positions[span] = np.arange(len(example))
            start = span.stop
        return batch

    @property
    def padding(self) -> Batch:
        """An empty sequence of weight 0."""
        zeros = [np.zeros(self._length, np.int32) for _ in range(4)]
        return Batch(
            tokens=zeros[0],
            targets=zeros[1],
            segment_ids=zeros[2],
            positions=zeros[3],
            loss_weights=np.zeros(self._length, np.float32),
        )

    def __repr__(self) -> str:
        return f"PackedRows({len(self)} of {self._length})"
