"""How repetitive texts are, and how many ended by themselves. Report: 3 and 6.2 speak of both."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# A word, a Chinese character, or a punctuation mark.
_TOKEN = re.compile(r"[㐀-鿿豈-﫿]|[^\W㐀-鿿豈-﫿]+|[^\w\s]")


class Repetition(NamedTuple):
    """Of a set of generated texts. Shares are from 0 to 1."""

    texts: int
    ended: float  # share that ended before the limit of tokens
    repetition_4: float  # mean over texts of `repetition(text, 4)`
    distinct_1: float
    distinct_2: float


def words(text: str) -> list[str]:
    """Returns words, single Chinese characters and punctuation marks."""
    return _TOKEN.findall(text)


def _ngrams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def repetition(text: str, n: int = 4) -> float:
    """Returns the share of a text's n-grams that occurred in it before; 0 without n-grams."""
    grams = Counter(_ngrams(words(text), n))
    total = grams.total()
    return 1 - len(grams) / total if total else 0.0


def distinct(texts: Iterable[str], n: int) -> float:
    """Returns distinct-n: different n-grams of all texts together over all n-grams; 0 for none."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        grams.update(_ngrams(words(text), n))
    return len(grams) / grams.total() if grams else 0.0


def ended_share(finish_reasons: Sequence[str]) -> float:
    """Returns the share of completions that were not cut at the limit of tokens (`length`)."""
    if not finish_reasons:
        return 0.0
    return sum(reason != "length" for reason in finish_reasons) / len(finish_reasons)


def summary(texts: Sequence[str], finish_reasons: Sequence[str]) -> Repetition:
    """Returns the measures of a set of completions."""
    mean = sum(map(repetition, texts)) / len(texts) if texts else 0.0
    return Repetition(
        len(texts), ended_share(finish_reasons), mean, distinct(texts, 1), distinct(texts, 2)
    )
