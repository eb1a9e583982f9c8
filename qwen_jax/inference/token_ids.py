"""Validates token ids from callers."""

import operator
from collections.abc import Sequence

import jax
import numpy as np

_ids: dict[int, int] = {}


def read_ids(
    ids, vocab_size: int | None, where: str, error, *, may_be_empty: bool = True
) -> np.ndarray:
    """Returns token ids as int32 [any], checked against a vocabulary.

    Args:
      vocab_size: number of ids in the vocabulary; None: check only against 2^31.
      where, error: the argument named in errors, and the error class to raise.
    """
    values = ids
    if not isinstance(ids, np.ndarray) and not isinstance(ids, jax.Array):
        try:
            values = [operator.index(token) for token in ids]
        except TypeError:
            raise error(
                f"{_short(ids)} is not a list of token ids.",
                where,
                "pass integers, as returned by Tokenizer.encode.",
            ) from None
    values = np.asarray(values if len(values) else np.zeros((0,), np.int32))
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise error(
            f"{_short(ids)} is not a list of token ids.",
            where,
            "pass integers, as returned by Tokenizer.encode.",
        )
    if not may_be_empty and not len(values):
        raise error(
            "the prompt is empty.",
            where,
            "pass at least one token, such as <|endoftext|>.",
        )
    bad = values[(values < 0) | (values >= (vocab_size or 2**31))]
    if len(bad):
        size = "2^31" if vocab_size is None else vocab_size
        raise error(
            f"token id {bad[0]} is outside the vocabulary of {size}.",
            where,
            "encode with the tokenizer that the model was trained with.",
        )
    return values.astype(np.int32)


def interned(ids: Sequence[int]) -> tuple[int, ...]:
    """Returns ids as a tuple in which equal ids are one object: 8 bytes per token instead of 40."""
    return tuple(map(_ids.setdefault, ids, ids))


def is_integer(value) -> bool:
    """Returns whether a value is a Python or NumPy integer; bools do not count."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
