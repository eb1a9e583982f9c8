"""Whether a text is new: its Rouge-L with every text that was kept. Report: 3.4 (self-instruct).

Rouge-L is the F measure of the longest common subsequence of words, 2 LCS / (m + n) for texts of m
and n words. It cannot be above 2 min(m, n) / (m + n), nor above 2 common / (m + n) where `common`
counts the words that both have, in any order; the few texts that pass both bounds are compared.
"""

import array
import collections
import re

import numpy as np

# A word of letters and digits; a character of Chinese, Japanese or Korean is a word by itself.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff"
    r"\uac00-\ud7af_]+"
)


def words(text: str) -> list[str]:
    """The words of a text, in lower case, without signs.

    Example:
      >>> words("Don't 翻译 it!")
      ['don', 't', '翻', '译', 'it']
    """
    return _WORD.findall(text.lower())


class Novelty:
    """The texts that were kept, and what is too like them.

    Args:
      threshold: a text is new unless its Rouge-L with a kept one is above this.
    """

    def __init__(self, threshold: float = 0.7):
        self.threshold = threshold
        self.texts: list[str] = []
        self._words: list[list[int]] = []
        self._lengths = array.array("q")
        self._numbers: dict[str, int] = {}
        # (word, which of its occurrences) -> texts that have it; so multisets meet as sets do.
        self._having: dict[tuple[int, int], array.array] = collections.defaultdict(
            lambda: array.array("q")
        )

    def add(self, text: str) -> None:
        """Keeps a text, new or not."""
        numbers = self._number(text)
        for occurrence in _occurrences(numbers):
            self._having[occurrence].append(len(self.texts))
        self.texts.append(text)
        self._words.append(numbers)
        self._lengths.append(len(numbers))

    def nearest(self, text: str) -> tuple[float, str] | None:
        """Rouge-L and text of the nearest kept one above the threshold; None if the text is new.

        A text without words is as near to nothing as can be: it is new.
        """
        numbers = self._number(text)
        if not numbers or not self.texts:
            return None
        # Copies: numpy's view of an array.array would forbid that it grows.
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
        places = np.flatnonzero(bound > self.threshold)
        for place in places[np.argsort(-bound[places], kind="stable")]:
            if best is not None and bound[place] <= best[0]:
                break
            score = float(2 * lcs_length(numbers, self._words[place]) / total[place])
            if score > self.threshold and (best is None or score > best[0]):
                best = score, self.texts[place]
        return best

    def _number(self, text: str) -> list[int]:
        return [self._numbers.setdefault(word, len(self._numbers)) for word in words(text)]


def lcs_length(one: list, other: list) -> int:
    """The length of the longest common subsequence, many words to a machine operation.

    Hyyrö 2004: bit i of `row` is 0 where the table's row steps up at column i.
    """
    masks: dict = collections.defaultdict(int)
    for place, word in enumerate(one):
        masks[word] |= 1 << place
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
