"""Rules for source files, which prose rules would reject. Report: 2.1 (code).

The limits are those of The Stack's and StarCoder's filters (Kocetkov et al. 2022, Li et al. 2023).
"""

import dataclasses
import re
from collections.abc import Iterator

Range = tuple[float, float]  # (min, max) allowed

_GENERATED = re.compile(
    r"auto-?\s?generated|generated (?:automatically|by|from|code|file)|do not edit|"
    r"do not modify this file|@generated|自动生成|请勿(?:编辑|修改)",
    re.I,
)
_ENCODED = re.compile(  # encoded data: base64, escapes, hexadecimal tables
    r"[A-Za-z0-9+/]{120,}={0,2}|(?:\\x[0-9A-Fa-f]{2}){8,}|(?:0x[0-9A-Fa-f]{1,8}\s*,\s*){8,}"
)
_HEAD_LINES = 10  # generated files are marked at the top


@dataclasses.dataclass(frozen=True)
class CodeRules:
    """Allowed (min, max) of each measure; the name of a field is the name of its rule."""

    characters: Range = (50, 1_000_000)  # ours / StarCoder: files above 1 MB are data
    generated_marks: Range = (0, 0)  # StarCoder; matches of _GENERATED in the first lines
    longest_line: Range = (0, 1000)  # The Stack; characters; minified files have longer lines
    line_length: Range = (0, 100)  # The Stack; mean number of characters
    alphanumeric: Range = (0.25, 1)  # The Stack; fraction of the characters
    alphabetic: Range = (0.25, 1)  # StarCoder; fraction of the non-whitespace characters
    encoded: Range = (0, 0.5)  # StarCoder 2; fraction of characters in encoded data
    duplicate_lines: Range = (0, 0.6)  # ours; fraction of the lines with at least 10 characters
    lorem_ipsum: Range = (0, 0)  # C4; occurrences


def measures(text: str, *, rules: CodeRules) -> Iterator[tuple[str, float, Range]]:
    """Yields (rule, value, allowed range), cheap rules first."""
    lines = text.splitlines()
    yield "characters", len(text), rules.characters
    head = "\n".join(lines[:_HEAD_LINES])
    yield "generated_marks", len(_GENERATED.findall(head)), rules.generated_marks
    yield "longest_line", max(map(len, lines), default=0), rules.longest_line
    yield "line_length", sum(map(len, lines)) / max(len(lines), 1), rules.line_length
    letters = sum(map(str.isalpha, text))
    digits = sum(map(str.isdecimal, text))
    yield "alphanumeric", (letters + digits) / max(len(text), 1), rules.alphanumeric
    visible = len("".join(text.split()))
    yield "alphabetic", letters / max(visible, 1), rules.alphabetic
    encoded = sum(match.end() - match.start() for match in _ENCODED.finditer(text))
    yield "encoded", encoded / max(len(text), 1), rules.encoded
    long_lines = [line for line in map(str.strip, lines) if len(line) >= 10]
    if long_lines:
        yield "duplicate_lines", 1 - len(set(long_lines)) / len(long_lines), rules.duplicate_lines
    yield "lorem_ipsum", text.lower().count("lorem ipsum"), rules.lorem_ipsum
