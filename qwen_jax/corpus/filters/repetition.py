"""How much of a text repeats itself: lines, paragraphs, and n-grams of words or characters.

Report: 2.1 (rules). The measures and numbers are Gopher's (Rae et al. 2021, Table A1), the n-grams
counted in characters of the text. What repeats is counted from its second occurrence on.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from qwen_jax.config import option

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a product loses no bit of what it mixes
_WORD_BITS = np.uint64(32)
_SAYS = re.compile(r"[^\W_]")


@dataclasses.dataclass(frozen=True)
class RepetitionRules:
    """The largest part of a text, 0 to 1, that may repeat."""

    duplicate_lines: float = 0.30  # Gopher; of the lines
    duplicate_line_characters: float = 0.10  # FineWeb's paper (its code 0.01, Gopher 0.20)
    duplicate_paragraphs: float = 0.30  # Gopher
    duplicate_paragraph_characters: float = 0.20  # Gopher
    min_units: int = option(50, "Gopher sees no shorter text", alias="least_units")
    top_sizes: tuple[int, ...] = (2, 3, 4)  # Gopher; units of the n-gram that comes most often
    top_ngrams: tuple[float, ...] = (0.20, 0.18, 0.16)  # Gopher; the part that it covers
    top_min_count: int = option(3, "ours: occurrences of a top n-gram", alias="top_least")
    duplicate_sizes: tuple[int, ...] = (5, 6, 7, 8, 9, 10)  # Gopher
    duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)  # Gopher


def repetitions(
    text: str,
    lines: Sequence[str],
    units: np.ndarray,
    lengths: np.ndarray,
    *,
    rules: RepetitionRules,
) -> Iterator[tuple[str, float, float]]:
    """(rule, value, largest value allowed), the cheap ones first.

    Args:
      lines: of the text, without empty ones.
      units: words or characters as numbers below 2^32, integers [num_units].
      lengths: characters of each, integers [num_units].
    """
    for name, parts, most, most_characters in (
        ("line", lines, rules.duplicate_lines, rules.duplicate_line_characters),
        (
            "paragraph",
            [p for p in text.split("\n\n") if p.strip()],
            rules.duplicate_paragraphs,
            rules.duplicate_paragraph_characters,
        ),
    ):
        if len(set(parts)) == len(parts):
            continue
        parts = [part for part in parts if _SAYS.search(part)] or parts  # no rules and borders
        different = set(parts)
        total = sum(map(len, parts))
        yield f"duplicate_{name}s", 1 - len(different) / len(parts), most
        yield (
            f"duplicate_{name}_characters",
            1 - sum(map(len, different)) / total,
            most_characters,
        )
    yield from _ngrams(units, lengths, rules)


def _ngrams(units, lengths, rules: RepetitionRules) -> Iterator[tuple[str, float, float]]:
    """Goes from short to long n-grams: one repeats only where the shorter ones in it do, so that
    ever fewer places are left to look at."""
    if len(units) < rules.min_units:
        return
    total = int(lengths.sum())
    ends = np.concatenate(([0], np.cumsum(lengths)))
    tops = dict(zip(rules.top_sizes, rules.top_ngrams, strict=True))
    duplicates = dict(zip(rules.duplicate_sizes, rules.duplicate_ngrams, strict=True))
    hashes = units.astype(np.uint64) + np.uint64(1)
    places = np.arange(len(units))  # where n-grams that may repeat begin
    for size in range(2, max((*tops, *duplicates)) + 1):
        places = places[places + size <= len(units)]
        if len(places) < 2:
            return
        hashes[places] = _mix(hashes[places], units[places + size - 1])
        order = np.argsort(hashes[places], kind="stable")  # of equal ones the first stays first
        ordered = hashes[places][order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        counts = np.diff(np.append(starts, len(ordered)))
        if size in tops:
            characters = ends[places[order[starts]] + size] - ends[places[order[starts]]]
            covered = np.where(counts >= rules.top_min_count, counts * characters, 0)
            yield f"top_{size}gram", min(1.0, covered.max() / total), tops[size]
        if size in duplicates:
            later = np.ones(len(ordered), bool)
            later[starts] = False
            yield (
                f"duplicate_{size}grams",
                _covered(places[order[later]], size, ends) / total,
                duplicates[size],
            )
        places = np.sort(places[order[np.repeat(counts > 1, counts)]])


def _mix(hashes: np.ndarray, units: np.ndarray) -> np.ndarray:
    mixed = (hashes ^ (hashes >> _WORD_BITS)) * _MULTIPLIER  # wraps around 2^64, as it should
    return mixed + units.astype(np.uint64) + np.uint64(1)


def _covered(places: np.ndarray, size: int, ends: np.ndarray) -> int:
    """Characters of the units that are in any of these n-grams, each once."""
    step = np.zeros(len(ends), np.int64)
    np.add.at(step, places, 1)
    np.add.at(step, places + size, -1)
    inside = np.cumsum(step)[:-1] > 0
    return int(np.diff(ends)[inside].sum())
