"""A small index of texts: BM25, with the name of a text counted more than its content."""

import collections
import math
import re
from collections.abc import Iterator, Sequence

_K, _B = 1.2, 0.75  # of BM25, as in Lucene
_NAME_WEIGHT = 4  # occurrences in a text that one in its name counts as
_WORD = re.compile(r"[A-Za-z0-9]+")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_COMMON = frozenset(
    "a an and are as at be by for from how i if in is it of on or that the this to use what with "
    "do does can my".split()
)


class Index:
    """Searches texts by words.

    Args:
      entries: (name, text) of each. A name such as json.dumps(obj) is found by `dumps`, and
        splitlines by itself only: words are not stemmed, except for a plural s.
    """

    def __init__(self, entries: Sequence[tuple[str, str]]):
        self._entries = list(entries)
        self._lengths: list[int] = []
        self._found: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        for index, (name, text) in enumerate(self._entries):
            counts = collections.Counter(words(text))
            for word in words(name.partition("(")[0]):
                counts[word] += _NAME_WEIGHT
            self._lengths.append(counts.total())
            for word, count in counts.items():
                self._found[word].append((index, count))
        self._mean = sum(self._lengths) / max(1, len(self._lengths))

    def __len__(self) -> int:
        return len(self._entries)

    def search(self, query: str, count: int) -> list[tuple[str, str]]:
        """Returns up to `count` entries with a word of the query, best first."""
        scores: dict[int, float] = collections.defaultdict(float)
        for word in set(words(query)):
            found = self._found.get(word, ())
            weight = math.log(1 + (len(self) - len(found) + 0.5) / (len(found) + 0.5))
            for index, times in found:
                length = _K * (1 - _B + _B * self._lengths[index] / self._mean)
                scores[index] += weight * times * (_K + 1) / (times + length)
        # A name that is the query comes first.
        exact = query.strip().rstrip("()")
        for index in scores:
            name = self._entries[index][0].partition("(")[0]
            if exact == name or f".{exact}" == name[-len(exact) - 1 :]:
                scores[index] += 100.0
        best = sorted(scores, key=lambda index: (-scores[index], self._entries[index][0]))
        return [self._entries[index] for index in best[:count]]


def words(text: str) -> Iterator[str]:
    """Yields the words of a text in lower case, and the parts of names such as toList."""
    for word in _WORD.findall(text):
        parts = _PARTS.findall(word)
        for part in dict.fromkeys([word, *(parts if len(parts) > 1 else ())]):
            lower = part.lower()
            if lower not in _COMMON:
                yield lower[:-1] if len(lower) > 3 and lower.endswith("s") else lower
