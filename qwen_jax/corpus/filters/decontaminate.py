"""Training text that shares 13 words in a row with a test item is left out. Report: 2.1.

The 13 words are the rule of the released notes for instruction data. That all text is held to it,
and the rules below, are ours.

Units are words of letters and digits, in lower case and without signs; a Chinese or Japanese
character is a unit by itself. An n-gram of more than `max_items` items is a phrase ("which of the
following statements is true about"), not an item, and does not count, nor does one that is mostly
numbers ("1 2 3 ..."). An item with fewer than n
units is matched whole; one that is too short even for that ("1+1=") only where it is all of a line.
"""

import collections
import dataclasses
import functools
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from qwen_jax.corpus import stage
from qwen_jax.corpus.filters.test_items import TestItem
from qwen_jax.errors import DataError
from qwen_jax.utils.files import atomic_write

_UNIT = re.compile(
    r"[\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]|"
    r"[^\W_\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_GROUP = 1 << 16  # units that are looked at together: what fits into a core's cache
_TABLE_BITS = 24  # of the table that is asked first: 2 MiB, which stays in the cache


@dataclasses.dataclass(frozen=True)
class DecontaminationRules:
    """What counts as an overlap."""

    ngram: int = 13  # released notes: units in a row
    min_units: int = 6  # ours: shorter items are matched as whole lines alone
    max_items: int = 10  # ours: an n-gram of more items is a phrase


RECIPE = DecontaminationRules()


class Match(NamedTuple):
    """What a text has of one item."""

    test_set: str
    item: str
    ngrams: int  # how many of the item's n-grams are in the text; 1 for one that is matched whole
    excerpt: str  # of the text, where the first one is


def units(text: str) -> list[str]:
    """Example:
    >>> units("Ｔｈｅ answer_is 42，对吗？")
    ['the', 'answer', 'is', '42', '对', '吗']
    """
    return _UNIT.findall(unicodedata.normalize("NFKC", text).lower())


def line_key(line: str) -> str:
    """A line without white space, width and case, with its signs."""
    return "".join(unicodedata.normalize("NFKC", line).lower().split())


class _Overlaps(NamedTuple):
    """What a text has of items, by their numbers."""

    counts: collections.Counter[int]
    excerpts: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Index:
    """The n-grams of test items. Made by `build`; `save` and `load` keep it in an .npz file."""

    rules: DecontaminationRules
    items: tuple[tuple[str, str], ...]  # test set, item
    numbers: dict[str, int]  # unit -> its number from 1 on; 0 is any other
    hashes: np.ndarray  # uint64 [entries], sorted
    lengths: np.ndarray  # uint8 [entries]; units of the n-gram, which are in its hash too
    owners: np.ndarray  # int32 [entries]; into items
    lines: dict[str, int]  # line_key of an item that is matched as a line -> into items
    phrases: int  # n-grams that were left out for being in too many items

    @functools.cached_property
    def _table(self) -> np.ndarray:
        table = np.zeros(1 << _TABLE_BITS, bool)
        table[self.hashes >> np.uint64(64 - _TABLE_BITS)] = True
        return table

    @functools.cached_property
    def _short(self) -> tuple[int, ...]:
        return tuple(int(n) for n in np.unique(self.lengths))

    @classmethod
    def build(cls, items: Iterable[TestItem], *, rules: DecontaminationRules = RECIPE) -> "Index":
        """Some seconds and 200 MB for a hundred thousand texts.

        Raises:
          DataError: no items.
        """
        numbers: dict[str, int] = {}
        names: dict[tuple[str, str], int] = {}
        lines: dict[str, int] = {}
        found: list[tuple[np.ndarray, int, int]] = []  # hashes, units of each, item
        for test_set, item, text in items:
            owner = names.setdefault((test_set, item), len(names))
            words = units(text)
            ids = np.fromiter(
                (numbers.setdefault(w, len(numbers) + 1) for w in words), np.uint64, len(words)
            )
            length = min(len(ids), rules.ngram)
            if length >= rules.min_units:
                numeric = np.concatenate(([0], np.cumsum([word.isdecimal() for word in words])))
                telling = 2 * (numeric[length:] - numeric[:-length]) <= length
                found.append((np.unique(_hash(ids, length)[telling]), length, owner))
            elif line_key(text):
                lines.setdefault(line_key(text), owner)
        if not names:
            raise DataError(
                "there are no test items.",
                "Index.build(items)",
                "name a folder of test sets; see corpus/filters/test_items.py.",
            )
        hashes = np.concatenate([h for h, *_ in found] or [np.zeros(0, np.uint64)])
        sizes = [len(h) for h, *_ in found]
        lengths = np.repeat(np.asarray([n for _, n, _ in found], np.uint8), sizes)
        owners = np.repeat(np.asarray([o for *_, o in found], np.int32), sizes)
        order = np.lexsort((owners, hashes))  # the same n-gram in two texts of an item counts once
        hashes, lengths, owners = hashes[order], lengths[order], owners[order]
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        hashes, lengths, owners = hashes[new], lengths[new], owners[new]
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        kept = counts[inverse] <= rules.max_items
        return cls(
            rules=rules,
            items=tuple(names),
            numbers=numbers,
            hashes=hashes[kept],
            lengths=lengths[kept],
            owners=owners[kept],
            lines=lines,
            phrases=int((counts > rules.max_items).sum()),
        )

    def matches(self, text: str) -> list[Match]:
        """The items that the text overlaps with, most n-grams first."""
        return self.matches_in([text])[0]

    def matches_in(self, texts: Sequence[str]) -> list[list[Match]]:
        """The same of each text, many times faster."""
        found: list[_Overlaps] = []
        group: list[list[str]] = []
        size = 0
        for text in texts:
            group.append(units(text))
            size += len(group[-1])
            if size >= _GROUP:
                found += self._overlaps(group)
                group, size = [], 0
        found += self._overlaps(group)
        for text, (counts, excerpts) in zip(texts, found, strict=True):
            for line in text.split("\n") if self.lines else ():
                owner = self.lines.get(line_key(line)) if len(line) < 200 else None
                if owner is not None:
                    counts[owner] += 1
                    excerpts.setdefault(owner, line.strip())
        return [
            [
                Match(*self.items[owner], number, excerpts[owner])
                for owner, number in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            ]
            for counts, excerpts in found
        ]

    def _overlaps(self, texts: list[list[str]]) -> list[_Overlaps]:
        """N-grams in common of texts that are given by their units."""
        found = [_Overlaps(collections.Counter(), {}) for _ in texts]
        sizes = np.asarray(list(map(len, texts)), np.int64)
        ends = np.cumsum(sizes)
        words = list(itertools.chain.from_iterable(texts))
        ids = np.fromiter(map(self._number, words), np.uint64, len(words))
        known = np.concatenate(([0], np.cumsum(ids != 0)))
        left = np.repeat(ends, sizes) - np.arange(len(ids))  # units up to the end of their text
        for length in self._short:
            starts = np.flatnonzero(
                (known[length:] - known[:-length] == length)
                & (left[: max(len(ids) - length + 1, 0)] >= length)
            )
            if not len(starts):
                continue
            hashes = _hash(ids, length)[starts]
            maybe = self._table[hashes >> np.uint64(64 - _TABLE_BITS)]
            hashes, starts = hashes[maybe], starts[maybe]
            at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
            hits = self.hashes[at] == hashes
            starts, lows = starts[hits], at[hits]
            seen: set[tuple[int, int]] = set()
            of = np.searchsorted(ends, starts, "right")
            for text, low, start in zip(of.tolist(), lows.tolist(), starts.tolist(), strict=True):
                if (text, low) in seen:
                    continue
                seen.add((text, low))
                high = int(np.searchsorted(self.hashes, self.hashes[low], "right"))
                for owner in self.owners[low:high].tolist():
                    found[text].counts[owner] += 1
                    found[text].excerpts.setdefault(owner, " ".join(words[start : start + length]))
        return found

    def _number(self, word: str) -> int:
        return self.numbers.get(word, 0)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one .npz file, whole or not at all, the same bytes for the same items in order."""
        words = [word for word, _ in sorted(self.numbers.items(), key=lambda pair: pair[1])]
        with atomic_write(path) as file:
            np.savez_compressed(
                file,
                hashes=self.hashes,
                lengths=self.lengths,
                owners=self.owners,
                rules=np.asarray(dataclasses.astuple(self.rules)),
                phrases=self.phrases,
                items=_packed("\0".join(pair) for pair in self.items),
                words=_packed(words),
                lines=_packed(self.lines),
                line_owners=np.asarray(list(self.lines.values()), np.int32),
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Index":
        """Raises:
        DataError: the file is missing, or no index.
        """
        try:
            with np.load(path) as file:
                pairs = (pair.partition("\0") for pair in _unpacked(file["items"]))
                words, lines = _unpacked(file["words"]), _unpacked(file["lines"])
                return cls(
                    rules=DecontaminationRules(*map(int, file["rules"])),
                    items=tuple((test_set, item) for test_set, _, item in pairs),
                    numbers={word: i for i, word in enumerate(words, 1)},
                    hashes=file["hashes"],
                    lengths=file["lengths"],
                    owners=file["owners"],
                    lines=dict(zip(lines, file["line_owners"].tolist(), strict=True)),
                    phrases=int(file["phrases"]),
                )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"no index of test items: {error}.",
                str(path),
                "build it again with Index.build(...).save(path).",
            ) from error


def _hash(ids: np.ndarray, length: int) -> np.ndarray:
    """A number for each run of `length` units; uint64 [len(ids) - length + 1]."""
    count = len(ids) - length + 1
    hashes = np.full(count, length, np.uint64)
    for i in range(length):  # products wrap around 2^64, as they should
        hashes = (hashes ^ (hashes >> np.uint64(32))) * _MULTIPLIER + ids[i : i + count]
    return (hashes ^ (hashes >> np.uint64(29))) * _MULTIPLIER


def _packed(words: Iterable[str]) -> np.ndarray:
    return np.frombuffer("\n".join(words).encode("utf-8", "surrogatepass"), np.uint8)


def _unpacked(array: np.ndarray) -> list[str]:
    text = array.tobytes().decode("utf-8", "surrogatepass")
    return text.split("\n") if text else []


@functools.lru_cache(maxsize=2)
def _loaded(path: str) -> Index:
    return Index.load(path)


@dataclasses.dataclass(frozen=True)
class DecontaminationStage:
    """Rejects what overlaps; the rule is `contaminated_TESTSET`, the value says with which item."""

    name: ClassVar[str] = "decontamination"
    counted: ClassVar[tuple[str, ...]] = ()
    index: str  # an .npz file that Index.save wrote

    def __call__(self, table):
        index = _loaded(self.index)

        def verdict(matches: list[Match]) -> stage.Verdict:
            if not matches:
                return None
            most = matches[0]
            return (
                f"contaminated_{most.test_set}",
                f"{most.item}, {most.ngrams} n-grams, {len(matches)} items: {most.excerpt}",
            )

        found = index.matches_in(table["text"].to_pylist())
        return stage.reject(table, list(map(verdict, found)))
