"""What a model is trained on, in colour: a look before the compute is spent."""

import itertools

import numpy as np

from qwen_jax.data.chat.sft_rows import Example
from qwen_jax.tokenizer.bpe import Tokenizer

_LEARNT, _PLAIN, _END = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"


def preview(example: Example, tokenizer: Tokenizer, *, colour: bool = True) -> str:
    """The text of an example; what is learnt is green, or in ⟦ ⟧ without colour."""
    learnt = example.weights > 0
    edges = [0, *(np.flatnonzero(np.diff(learnt)) + 1), len(learnt)]
    on, off, end = (_LEARNT, _PLAIN, _END) if colour else ("⟦", "", "")
    parts = []
    for start, stop in itertools.pairwise(edges):
        text = tokenizer.decode(example.tokens[start:stop])
        closing = end if colour or not learnt[start] else "⟧"
        parts.append((on if learnt[start] else off) + text + closing)
    return "".join(parts)
