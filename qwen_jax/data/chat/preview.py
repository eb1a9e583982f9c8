"""Shows which tokens of an example are in the loss, to check before spending compute."""

import itertools

import numpy as np

from qwen_jax.data.chat.sft_rows import Example
from qwen_jax.tokenizer.bpe import Tokenizer

_LEARNED, _PLAIN, _END = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"


def preview(example: Example, tokenizer: Tokenizer, *, color: bool = True) -> str:
    """Returns the text of an example; loss tokens are green, or in ⟦ ⟧ without color."""
    learned = example.weights > 0
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1), len(learned)]
    on, off, end = (_LEARNED, _PLAIN, _END) if color else ("⟦", "", "")
    parts = []
    for start, stop in itertools.pairwise(edges):
        text = tokenizer.decode(example.tokens[start:stop])
        closing = end if color or not learned[start] else "⟧"
        parts.append((on if learned[start] else off) + text + closing)
    return "".join(parts)
