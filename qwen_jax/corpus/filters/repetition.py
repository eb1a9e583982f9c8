"""Measures repetition in a text: lines, paragraphs, and n-grams of words or characters.

Report: 2.1 (rules). The measures and limits are Gopher's (Rae et al. 2021, Table A1). N-grams are
weighted by their length in characters. The first occurrence of a repeated part is not counted.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from qwen_jax.config import option

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it is a bijection
_WORD_BITS = np.uint64(32)
_LETTER = re.compile(r"[^\W_]")


@dataclasses.dataclass(frozen=True)
class RepetitionRules:
    """Maximum fractions of a text that may be repeated, 0 to 1."""

    duplicate_lines: float = 0.30  # Gopher; fraction of the lines
    duplicate_line_characters: float = 0.10  # FineWeb's paper; its code has 0.01, Gopher 0.20
    duplicate_paragraphs: float = 0.30  # Gopher
    duplicate_paragraph_characters: float = 0.20  # Gopher
    # In a shorter text, a single repeated name is already a large fraction.
    min_units: int = option(
        50, "minimum length of a text to check, as in Gopher", alias="least_units"
    )
    top_sizes: tuple[int, ...] = (2, 3, 4)  # Gopher; n for the most frequent n-gram
    top_ngrams: tuple[float, ...] = (0.20, 0.18, 0.16)  # Gopher; fraction that this n-gram covers
    # Two occurrences are not a pattern, but cover much of a short text.
    top_min_count: int = option(3, "minimum occurrences of a top n-gram (ours)", alias="top_least")
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
    """Yields (rule, value, maximum allowed value), cheap rules first.

    Args:
      text: text of the document.
      lines: its non-empty lines.
      units: IDs below 2^32 of its words or characters; integers [num_units].
      lengths: length of each unit in characters; integers [num_units].
      rules: the limits.
    """
    for name, parts, max_parts, max_characters in (
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
        parts = [part for part in parts if _LETTER.search(part)] or parts  # drops separator lines
        distinct = set(parts)
        total = sum(map(len, parts))
        yield f"duplicate_{name}s", 1 - len(distinct) / len(parts), max_parts
        yield (
            f"duplicate_{name}_characters",
            1 - sum(map(len, distinct)) / total,
            max_characters,
        )
    yield from _ngrams(units, lengths, rules)


def _ngrams(units, lengths, rules: RepetitionRules) -> Iterator[tuple[str, float, float]]:
    """Yields n-gram rules, smallest n first.

    An n-gram can repeat only where its prefix repeats, so each size leaves fewer candidates.
    """
    if len(units) < rules.min_units:
        return
    total = int(lengths.sum())
    ends = np.concatenate(([0], np.cumsum(lengths)))
    tops = dict(zip(rules.top_sizes, rules.top_ngrams, strict=True))
    duplicates = dict(zip(rules.duplicate_sizes, rules.duplicate_ngrams, strict=True))
    hashes = units.astype(np.uint64) + np.uint64(1)
    begins = np.arange(len(units))  # start of each candidate n-gram
    for size in range(2, max((*tops, *duplicates)) + 1):
        begins = begins[begins + size <= len(units)]
        if len(begins) < 2:
            return
        hashes[begins] = _mix(hashes[begins], units[begins + size - 1])
        order = np.argsort(hashes[begins], kind="stable")  # keeps first occurrences first
        ordered = hashes[begins][order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        counts = np.diff(np.append(starts, len(ordered)))
        if size in tops:
            characters = ends[begins[order[starts]] + size] - ends[begins[order[starts]]]
            covered = np.where(counts >= rules.top_min_count, counts * characters, 0)
            yield f"top_{size}gram", min(1.0, covered.max() / total), tops[size]
        if size in duplicates:
            later = np.ones(len(ordered), bool)
            later[starts] = False
            yield (
                f"duplicate_{size}grams",
                _covered(begins[order[later]], size, ends) / total,
                duplicates[size],
            )
        begins = np.sort(begins[order[np.repeat(counts > 1, counts)]])


def _mix(hashes: np.ndarray, units: np.ndarray) -> np.ndarray:
    mixed = (hashes ^ (hashes >> _WORD_BITS)) * _MULTIPLIER  # wraps around 2^64 on purpose
    return mixed + units.astype(np.uint64) + np.uint64(1)


def _covered(begins: np.ndarray, size: int, ends: np.ndarray) -> int:
    """Returns the number of characters that these n-grams cover, each counted once."""
    step = np.zeros(len(ends), np.int64)
    np.add.at(step, begins, 1)
    np.add.at(step, begins + size, -1)
    inside = np.cumsum(step)[:-1] > 0
    return int(np.diff(ends)[inside].sum())
