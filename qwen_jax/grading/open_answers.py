"""Short answers in free words, equal after the normalization of SQuAD and of Natural Questions."""

import re
import string
import unicodedata
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Returns text in lower case without punctuation and articles, with single spaces.

    Accents are separated from their letters, so both ways of writing "é" are equal.
    """
    text = unicodedata.normalize("NFD", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    """Returns whether a prediction is one of the answers. An empty one is none of them."""
    found = normalized(prediction)
    return bool(found) and found in map(normalized, answers)
