"""Measures a text's novelty by its Rouge-L with every kept text. Report: 3.4 (self-instruct).

Rouge-L is the F-measure of the longest common subsequence (LCS) of words: 2 LCS / (m + n) for texts
of m and n words. Its upper bound is 2 common / (m + n), where `common` counts the words that both
share in any order. Only the few texts whose bound exceeds the threshold are compared.
"""

import array
import collections
import re

import numpy as np

# A word is a run of letters and digits, or one Chinese, Japanese or Korean character.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff"
    r"\uac00-\ud7af_]+"
)


def words(text: str) -> list[str]:
    """Returns the words of a text in lowercase, without punctuation.

    Example:
      >>> words("Don't 翻译 it!")
      ['don', 't', '翻', '译', 'it']
    """
    return _WORD.findall(text.lower())


class Novelty:
    """The kept texts, searchable by similarity.

    Args:
      threshold: a text is new if its Rouge-L with every kept text is at most this.
    """

    def __init__(self, threshold: float = 0.7):
        self.threshold = threshold
        self.texts: list[str] = []
        self._words: list[list[int]] = []
        self._lengths = array.array("q")
        self._numbers: dict[str, int] = {}
        # (word, occurrence number) -> texts that contain it; intersects multisets like sets.
        self._having: dict[tuple[int, int], array.array] = collections.defaultdict(
            lambda: array.array("q")
        )

    def add(self, text: str) -> None:
        """Adds a text to the kept texts without checking its novelty."""
        numbers = self._number(text)
        for occurrence in _occurrences(numbers):
            self._having[occurrence].append(len(self.texts))
        self.texts.append(text)
        self._words.append(numbers)
        self._lengths.append(len(numbers))

    def nearest(self, text: str) -> tuple[float, str] | None:
        """Returns (Rouge-L, text) of the most similar kept text above the threshold, or None.

        None means that the text is new. A text without words is always new.
        """
        numbers = self._number(text)
        if not numbers or not self.texts:
            return None
        # Copies: an array.array cannot grow while numpy holds a view of it.
        having = [
            np.frombuffer(self._having[occurrence], np.int64).copy()
            for occurrence in _occurrences(numbers)
            if occurrence in self._having
        ]
        if not having:
            return None
        total = np.frombuffer(self._lengths, np.int64) + len(numbers)
        common = np.bincount(np.concatenate(having), minlength=len(self.texts))
        bound = 2 * common / total
        best: tuple[float, str] | None = None
        candidates = np.flatnonzero(bound > self.threshold)
        for index in candidates[np.argsort(-bound[candidates], kind="stable")]:
            if best is not None and bound[index] <= best[0]:
                break
            score = float(2 * lcs_length(numbers, self._words[index]) / total[index])
            if score > self.threshold and (best is None or score > best[0]):
                best = score, self.texts[index]
        return best

    def _number(self, text: str) -> list[int]:
        return [self._numbers.setdefault(word, len(self._numbers)) for word in words(text)]


def lcs_length(one: list, other: list) -> int:
    """Returns the length of the longest common subsequence, with bit-parallel operations.

    Hyyrö 2004: bit i of `row` is 0 where the row of the dynamic-programming table increases at
    column i.
    """
    masks: dict = collections.defaultdict(int)
    for index, word in enumerate(one):
        masks[word] |= 1 << index
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        both = row & masks.get(word, 0)
        row = ((row + both) | (row - both)) & full
    return len(one) - row.bit_count()


def _occurrences(numbers: list[int]) -> list[tuple[int, int]]:
    seen: collections.Counter[int] = collections.Counter()
    found = []
    for number in numbers:
        found.append((number, seen[number]))
        seen[number] += 1
    return found
