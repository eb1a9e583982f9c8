"""Shows which tokens of an example are in the loss, to check before spending compute."""

import itertools

import numpy as np

from qwen_jax.data.chat.sft_rows import Example
from qwen_jax.tokenizer.bpe import Tokenizer

_LEARNED, _PLAIN, _END = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"


def preview(example: Example, tokenizer: Tokenizer, *, color: bool = True) -> str:
    """Returns how much of each turn of an example is in the loss, then its text.

    Tokens in the loss are green, or in ⟦ ⟧ without color.
    """
    learned = example.weights > 0
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1), len(learned)]
    on, off, end = (_LEARNED, _PLAIN, _END) if color else ("⟦", "", "")
    turns = ", ".join(
        f"{role} {trained}/{total}" for role, trained, total in trained_by_turn(example, tokenizer)
    )
    parts = [f"trained tokens of each turn: {turns}\n"]
    for start, stop in itertools.pairwise(edges):
        text = tokenizer.decode(example.tokens[start:stop])
        closing = end if color or not learned[start] else "⟧"
        parts.append((on if learned[start] else off) + text + closing)
    return "".join(parts)


def trained_by_turn(example: Example, tokenizer: Tokenizer) -> list[tuple[str, int, int]]:
    """Returns the role of each turn, the number of its tokens in the loss, and that of all."""
    starts = [*np.flatnonzero(example.tokens == tokenizer.im_start), len(example.tokens)]
    return [
        (
            tokenizer.decode(example.tokens[start + 1 : stop]).partition("\n")[0],
            int((example.weights[start:stop] > 0).sum()),
            int(stop - start),
        )
        for start, stop in itertools.pairwise(starts)
    ]
