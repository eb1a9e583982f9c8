"""Packs conversations into SFT sequences with tokens, targets and loss weights. Report: 3.1.1.

The tokens and the loss are those of the template of the tokenizer (tokenizer/template).

Each conversation is its own segment with positions from 0; attention does not cross conversations.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qwen_jax.data.chat.conversations import Conversation, Counts
from qwen_jax.data.chat.render import check_template, for_template
from qwen_jax.data.chat.rows import Skipped
from qwen_jax.data.packing import pack
from qwen_jax.errors import ConfigError, DataError, TokenizerError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import training
from qwen_jax.tokenizer.template.tokens import check_variables, source_of
from qwen_jax.types import Batch

MASKS = (
    "assistant",  # as in the report: no loss on system and user turns
    "original",  # as in the released script of Qwen-1: also the markers of all turns
)


SPLIT = (
    "made several examples, one for each turn that is trained: the chat template renders earlier "
    "turns in another way, as Qwen3's leaves out their thoughts"
)


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation as tokens."""

    tokens: np.ndarray  # int32 [n + 1]
    weights: np.ndarray  # float32 [n + 1]; 1 where the token is in the loss

    def __len__(self) -> int:
        return len(self.tokens) - 1  # inputs; the last token is only a target

    def truncated(self, length: int) -> "Example":
        """Returns the first `length` inputs and their targets."""
        return Example(self.tokens[: length + 1], self.weights[: length + 1])


def encode(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    counts: Counts,
    mask: str = "assistant",
    variables: Mapping[str, Any] | None = None,
) -> Iterator[Example]:
    """Yields examples of at most `context_length` inputs, truncated on the right.

    A conversation is one example, or one for each trained turn if the template renders earlier
    turns in another way than the last one (tokenizer/template/training.py). Examples without a
    response token within the length are skipped. What is truncated, skipped or made several
    examples is counted in `counts`.

    Args:
      variables: of the chat template; those of a row come on top.

    Raises:
      TokenizerError: the template is malformed, jinja2 is not installed, or the tokenizer has no
        template for the variables.
      ConfigError: the mask "original" with a template.
    """
    check_variables(tokenizer, variables or {})
    if mask == "original" and source_of(tokenizer) is not None:
        raise ConfigError(
            "the mask of the script of Qwen-1 is for its format, but the tokenizer has a chat "
            "template of its own.",
            "--data.mask=original",
            "omit it; --data.mask=assistant trains what the assistant wrote.",
        )
    for conversation in conversations:
        try:
            found = _examples(conversation, tokenizer, mask, variables or {})
        except Skipped as reason:
            counts.kept -= 1
            counts.skip(str(reason), conversation.where)
            continue
        if len(found) > 1:
            counts.change(SPLIT, conversation.where)
        usable = [example for example, written in found if written[1 : context_length + 1].any()]
        if len(usable) < len(found):
            counts.kept -= not usable
            counts.skip(
                f"no response within {context_length} tokens (--data.context_length)",
                conversation.where,
            )
        for example in usable:
            if len(example) > context_length:
                counts.change(
                    f"truncated to {context_length} tokens (--data.context_length)",
                    conversation.where,
                )
            yield example.truncated(context_length)


def _examples(
    conversation: Conversation, tokenizer: Tokenizer, mask: str, variables: Mapping[str, Any]
) -> list[tuple[Example, np.ndarray]]:
    """Returns examples, and for each token whether it is a trained one of the assistant.

    Raises:
      Skipped: the template refuses the conversation, or would leave out a part of it.
    """
    dialogue, marks = conversation.rendered, conversation.trained
    messages, tools = for_template(dialogue.messages, dialogue.tools)
    check_template(tokenizer, messages, tools)
    if marks is not None:  # a system message that describes tools may have been added
        marks = ((False,) * len(messages) + marks)[-len(messages) :]
    try:
        found = training.examples(
            tokenizer, messages, tools, trained=marks, **{**variables, **dialogue.variables}
        )
    except TokenizerError as error:
        raise Skipped(error.what) from None
    weights = {"assistant": lambda each: each.writer >= 0, "original": _original}
    return [
        (Example(each.tokens, weights[mask](each).astype(np.float32)), each.writer >= 0)
        for each in found
    ]


def _original(written: training.Written) -> np.ndarray:
    """Returns the mask of the released script: also the markers of turns, bool [T].

    Not those of the assistant's turns that are not trained.
    """
    rendered = chatml.Rendered(written.tokens, written.spans)
    weights = chatml.original_loss_weights(rendered, written.writer >= 0)
    start = 0
    for span in written.spans:
        if span.role == "assistant" and not (written.writer[span.start : span.end] >= 0).any():
            weights[start : span.end + 1] = 0
        start = span.end + 1
    return weights > 0


def trained_bytes(examples: Iterable[Example], tokenizer: Tokenizer) -> int:
    """Returns the bytes of UTF-8 text in the loss. Special tokens, such as <|im_end|>, are none."""
    sizes = np.zeros(tokenizer.vocab_size, np.int64)
    for token, number in tokenizer.mergeable_ranks.items():
        sizes[number] = len(token)
    return sum(int(sizes[e.tokens[1:][e.weights[1:] > 0]].sum()) for e in examples)


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
