"""Where a prompt's tokens end and a continuation's begin.

Tokens may merge across the boundary: in "Answer:A", Qwen's vocabulary has a token ":A". The prompt
and the continuation are encoded together if the prompt's tokens come out the same, and separately
otherwise. A continuation is never empty.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_jax.errors import DataError
from qwen_jax.inference.token_ids import interned
from qwen_jax.tokenizer.bpe import Tokenizer


class Split(NamedTuple):
    """Token ids of a prompt and of its continuation."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    separate: bool  # whether they were encoded separately, because tokens merge


def split(tokenizer: Tokenizer, context: str, continuations: Sequence[str]) -> list[Split]:
    """Encodes a prompt and each of its continuations.

    Spaces at the end of the prompt go to the continuations.

    Raises:
      DataError: a continuation is empty.
    """
    text = context.rstrip(" ")
    before, found = interned(tokenizer.encode(text)), []
    for continuation in continuations:
        continuation = context[len(text) :] + continuation
        if not continuation:
            raise DataError("a continuation is empty.", repr(context[-40:]), "pass some text.")
        both = tuple(tokenizer.encode(text + continuation))
        if both[: len(before)] == before and len(both) > len(before):
            found.append(Split(before, both[len(before) :], False))
        else:
            found.append(Split(before, tuple(tokenizer.encode(continuation)), True))
    return found
