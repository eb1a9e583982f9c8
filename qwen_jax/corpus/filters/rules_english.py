"""Rules for text with spaces between words: Gopher, C4, FineWeb. Report: 2.1."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from qwen_jax.corpus.filters.repetition import RepetitionRules, repetitions

Range = tuple[float, float]  # (min, max) allowed

_STOP_WORDS = frozenset("the be to of and that have with".split())  # Gopher
_LETTER = re.compile(r"[^\W\d_]")
_BULLET = re.compile(r"[-*•●◦▪■‣–]\s")
_SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]*(?:\s|$)")
_LAST = (".", "!", "?", "…", '"', "'", "”", "’", "»", ")", ":", ";")
BRACE = re.compile(r"(?:^|[\s)=:])\{", re.M)  # as in code; in TeX a letter precedes it
FEW_LINES = 4  # ours: with fewer lines, fractions of lines are not meaningful
_BOILERPLATE = re.compile(  # C4 removes lines with these or with any "javascript"
    r"(?:enable|disabled?|requires?|turn on|without|support) (?:your )?javascript|"
    r"javascript (?:is|must|has|needs|to be|enabled|disabled|required)|terms of use|"
    r"privacy policy|cookie policy|uses? cookies|use of cookies",
    re.I,
)


@dataclasses.dataclass(frozen=True)
class EnglishRules:
    """Allowed (min, max) of each measure; the name of a field is the name of its rule."""

    words: Range = (50, 100_000)  # Gopher
    word_length: Range = (3, 10)  # Gopher; mean, in characters
    hash_marks: Range = (0, 0.1)  # Gopher; "#" per word
    ellipses: Range = (0, 0.1)  # Gopher; "..." or "…" per word
    bullet_lines: Range = (0, 0.9)  # Gopher; fraction of the lines
    ellipsis_lines: Range = (0, 0.3)  # Gopher; fraction of the lines
    words_with_letters: Range = (0.8, 1)  # Gopher; fraction of the words
    stop_words: Range = (2, 8)  # Gopher; distinct: the, be, to, of, and, that, have, with
    lorem_ipsum: Range = (0, 0)  # C4; occurrences
    braces: Range = (0, 0.05)  # ours: per word; C4 rejects any "{", even in TeX or an example
    boilerplate_lines: Range = (0, 0.2)  # ours: C4 removes these lines, we keep texts intact
    sentences: Range = (3, np.inf)  # C4, as in its code
    ended_lines: Range = (0.12, 1)  # FineWeb; fraction of lines that end with punctuation
    short_lines: Range = (0, 0.67)  # FineWeb; fraction of lines under 30 characters
    new_lines: Range = (0, 0.3)  # FineWeb; per word
    repetition: RepetitionRules = RepetitionRules()


def measures(
    text: str, *, rules: EnglishRules, english: bool = True
) -> Iterator[tuple[str, float, Range]]:
    """Yields (rule, value, allowed range), cheap rules first.

    Args:
      text: text of the document.
      rules: the limits.
      english: whether the language is English; stop_words applies only then.
    """
    words = text.split()
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    num_words, num_lines = max(len(words), 1), max(len(lines), 1)
    yield "words", len(words), rules.words
    yield "word_length", sum(map(len, words)) / num_words, rules.word_length
    yield "hash_marks", text.count("#") / num_words, rules.hash_marks
    yield "ellipses", (text.count("...") + text.count("…")) / num_words, rules.ellipses
    letters = sum(word.isalpha() or bool(_LETTER.search(word)) for word in words)
    yield "words_with_letters", letters / num_words, rules.words_with_letters
    lower = text.lower()
    if english:
        yield "stop_words", len(_STOP_WORDS.intersection(lower.split())), rules.stop_words
    yield "lorem_ipsum", lower.count("lorem ipsum"), rules.lorem_ipsum
    yield "braces", len(BRACE.findall(text)) / num_words, rules.braces
    yield "sentences", len(_SENTENCE.findall(text)), rules.sentences
    yield "new_lines", text.count("\n") / num_words, rules.new_lines
    if num_lines >= FEW_LINES:
        yield from line_measures(lines, rules, bullet=_BULLET, boilerplate=_BOILERPLATE)
        yield (
            "ended_lines",
            sum(line.endswith(_LAST) for line in lines) / num_lines,
            rules.ended_lines,
        )
        yield "short_lines", sum(len(line) < 30 for line in lines) / num_lines, rules.short_lines
    numbers: dict[str, int] = {}
    units = np.fromiter(
        (numbers.setdefault(word, len(numbers)) for word in words), np.int64, len(words)
    )
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    for name, value, limit in repetitions(text, lines, units, lengths, rules=rules.repetition):
        yield name, value, (0, limit)


def line_measures(
    lines: Sequence[str], rules, *, bullet: re.Pattern, boilerplate: re.Pattern
) -> Iterator[tuple[str, float, Range]]:
    """Yields line fractions for any script: bullets, trailing ellipses, boilerplate."""
    for name, found in (
        ("bullet_lines", map(bullet.match, lines)),
        ("ellipsis_lines", (line.endswith(("...", "…")) for line in lines)),
        ("boilerplate_lines", map(boilerplate.search, lines)),
    ):
        yield name, sum(map(bool, found)) / len(lines), getattr(rules, name)
