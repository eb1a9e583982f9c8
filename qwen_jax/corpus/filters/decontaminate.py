"""Rejects training text that shares 13 consecutive words with a test item. Report: 2.1.

The released notes apply a 13-word rule to instruction data. Applying it to all text is our choice,
and so are the rules below.

Units are lowercase words of letters and digits, without punctuation; each Chinese or Japanese
character is one unit. An n-gram that occurs in more than `max_items` items is a common phrase
("which of the following statements is true about") and is ignored. So is one that is mostly numbers
("1 2 3"). An item with fewer than n units must match in full. An item with fewer than `min_units`
units ("1+1=") matches only if it fills a line.
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
_GROUP = 1 << 16  # units processed together, to fit in a core's cache
_TABLE_BITS = 24  # log2 of the size of the prefilter table, 16 MiB of booleans


@dataclasses.dataclass(frozen=True)
class DecontaminationRules:
    """What counts as an overlap."""

    ngram: int = 13  # released notes: consecutive units that count as an overlap
    min_units: int = 6  # ours: shorter items match only full lines
    max_items: int = 10  # ours: an n-gram in more items is a common phrase


RECIPE = DecontaminationRules()


class Match(NamedTuple):
    """The overlap of a text with one item."""

    test_set: str
    item: str
    ngrams: int  # number of the item's n-grams in the text; 1 for a full match
    excerpt: str  # the first match in the text


def units(text: str) -> list[str]:
    """Splits a text into units.

    Example:
      >>> units("Ｔｈｅ answer_is 42，对吗？")
      ['the', 'answer', 'is', '42', '对', '吗']
    """
    return _UNIT.findall(unicodedata.normalize("NFKC", text).lower())


def line_key(line: str) -> str:
    """Returns a line in NFKC and lowercase, without whitespace but with punctuation."""
    return "".join(unicodedata.normalize("NFKC", line).lower().split())


class _Overlaps(NamedTuple):
    """The overlaps of a text, by item index."""

    counts: collections.Counter[int]
    excerpts: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Index:
    """The n-grams of test items. Create one with `build` or `load`."""

    rules: DecontaminationRules
    items: tuple[tuple[str, str], ...]  # (test set, item) pairs
    unit_ids: dict[str, int]  # unit -> ID, starting at 1; 0 is an unknown unit
    hashes: np.ndarray  # uint64 [entries], sorted
    lengths: np.ndarray  # uint8 [entries]; units in the n-gram (also part of its hash)
    owners: np.ndarray  # int32 [entries]; index into items
    lines: dict[str, int]  # line_key of an item that is matched by line -> index into items
    phrases: int  # number of n-grams ignored because too many items contain them

    @functools.cached_property
    def _table(self) -> np.ndarray:
        table = np.zeros(1 << _TABLE_BITS, bool)
        table[self.hashes >> np.uint64(64 - _TABLE_BITS)] = True
        return table

    @functools.cached_property
    def _ngram_lengths(self) -> tuple[int, ...]:
        return tuple(int(n) for n in np.unique(self.lengths))

    @classmethod
    def build(cls, items: Iterable[TestItem], *, rules: DecontaminationRules = RECIPE) -> "Index":
        """Builds the index; 100,000 texts take a few seconds and 200 MB.

        Raises:
          DataError: there are no items.
        """
        unit_ids: dict[str, int] = {}
        names: dict[tuple[str, str], int] = {}
        lines: dict[str, int] = {}
        found: list[tuple[np.ndarray, int, int]] = []  # (hashes, n-gram length, item index)
        for test_set, item, text in items:
            owner = names.setdefault((test_set, item), len(names))
            words = units(text)
            ids = np.fromiter(
                (unit_ids.setdefault(w, len(unit_ids) + 1) for w in words), np.uint64, len(words)
            )
            length = min(len(ids), rules.ngram)
            if length >= rules.min_units:
                numeric = np.concatenate(([0], np.cumsum([word.isdecimal() for word in words])))
                specific = 2 * (numeric[length:] - numeric[:-length]) <= length
                found.append((np.unique(_hash(ids, length)[specific]), length, owner))
            elif line_key(text):
                lines.setdefault(line_key(text), owner)
        if not names:
            raise DataError(
                "no test items.",
                "Index.build(items)",
                "pass items from read_test_sets(FOLDER); see corpus/filters/test_items.py.",
            )
        hashes = np.concatenate([h for h, *_ in found] or [np.zeros(0, np.uint64)])
        sizes = [len(h) for h, *_ in found]
        lengths = np.repeat(np.asarray([n for _, n, _ in found], np.uint8), sizes)
        owners = np.repeat(np.asarray([o for *_, o in found], np.int32), sizes)
        order = np.lexsort((owners, hashes))  # an n-gram counts once per item
        hashes, lengths, owners = hashes[order], lengths[order], owners[order]
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        hashes, lengths, owners = hashes[new], lengths[new], owners[new]
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        kept = counts[inverse] <= rules.max_items
        return cls(
            rules=rules,
            items=tuple(names),
            unit_ids=unit_ids,
            hashes=hashes[kept],
            lengths=lengths[kept],
            owners=owners[kept],
            lines=lines,
            phrases=int((counts > rules.max_items).sum()),
        )

    def matches(self, text: str) -> list[Match]:
        """Returns the items that overlap with the text, those with the most n-grams first."""
        return self.matches_in([text])[0]

    def matches_in(self, texts: Sequence[str]) -> list[list[Match]]:
        """Returns `matches` of each text, many times faster than one call per text."""
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
        """Returns the overlaps of texts; each text is a list of units."""
        found = [_Overlaps(collections.Counter(), {}) for _ in texts]
        sizes = np.asarray(list(map(len, texts)), np.int64)
        ends = np.cumsum(sizes)
        words = list(itertools.chain.from_iterable(texts))
        ids = np.fromiter(map(self._unit_id, words), np.uint64, len(words))
        known = np.concatenate(([0], np.cumsum(ids != 0)))
        left = np.repeat(ends, sizes) - np.arange(len(ids))  # units left in the text
        for length in self._ngram_lengths:
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
            owner_texts = np.searchsorted(ends, starts, "right")
            for text, low, start in zip(
                owner_texts.tolist(), lows.tolist(), starts.tolist(), strict=True
            ):
                if (text, low) in seen:
                    continue
                seen.add((text, low))
                high = int(np.searchsorted(self.hashes, self.hashes[low], "right"))
                for owner in self.owners[low:high].tolist():
                    found[text].counts[owner] += 1
                    found[text].excerpts.setdefault(owner, " ".join(words[start : start + length]))
        return found

    def _unit_id(self, word: str) -> int:
        return self.unit_ids.get(word, 0)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one .npz file atomically; the same items in the same order give the same bytes."""
        words = [word for word, _ in sorted(self.unit_ids.items(), key=lambda pair: pair[1])]
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
        """Loads an index written by `save`.

        Raises:
          DataError: the file is missing or is not an index.
        """
        try:
            with np.load(path) as file:
                pairs = (pair.partition("\0") for pair in _unpacked(file["items"]))
                words, lines = _unpacked(file["words"]), _unpacked(file["lines"])
                return cls(
                    rules=DecontaminationRules(*map(int, file["rules"])),
                    items=tuple((test_set, item) for test_set, _, item in pairs),
                    unit_ids={word: i for i, word in enumerate(words, 1)},
                    hashes=file["hashes"],
                    lengths=file["lengths"],
                    owners=file["owners"],
                    lines=dict(zip(lines, file["line_owners"].tolist(), strict=True)),
                    phrases=int(file["phrases"]),
                )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"cannot read the index of test items: {error}.",
                str(path),
                "rebuild it with Index.build(...).save(path).",
            ) from error


def _hash(ids: np.ndarray, length: int) -> np.ndarray:
    """Returns a hash of each run of `length` units; uint64 [len(ids) - length + 1]."""
    count = len(ids) - length + 1
    hashes = np.full(count, length, np.uint64)
    for i in range(length):  # the multiplication wraps around 2^64 on purpose
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
    """Rejects text that overlaps a test item.

    The rule is `contaminated_TESTSET`; the value names the item.
    """

    name: ClassVar[str] = "decontamination"
    counted: ClassVar[tuple[str, ...]] = ()
    index: str  # an .npz file written by Index.save

    def __call__(self, table):
        index = _loaded(self.index)

        def verdict(matches: list[Match]) -> stage.Verdict:
            if not matches:
                return None
            best = matches[0]
            return (
                f"contaminated_{best.test_set}",
                f"{best.item}, {best.ngrams} n-grams, {len(matches)} items: {best.excerpt}",
            )

        found = index.matches_in(table["text"].to_pylist())
        return stage.reject(table, list(map(verdict, found)))
