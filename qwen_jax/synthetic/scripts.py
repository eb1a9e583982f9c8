"""Detects the script of a text from its letters, a cheap proxy for its language."""

import collections
import unicodedata

_RANGES = (  # (first code point, last code point, script)
    (0x4E00, 0x9FFF, "chinese"),
    (0x3400, 0x4DBF, "chinese"),
    (0x3040, 0x30FF, "japanese"),
    (0xAC00, 0xD7AF, "korean"),
    (0x0400, 0x04FF, "cyrillic"),
    (0x0600, 0x06FF, "arabic"),
    (0x0900, 0x097F, "devanagari"),
    (0x0E00, 0x0E7F, "thai"),
    (0x0370, 0x03FF, "greek"),
    (0x0590, 0x05FF, "hebrew"),
)
NAMES = (*dict.fromkeys(name for *_, name in _RANGES), "latin")
_CJK_WORD = 2  # characters per word: about two in Chinese, about five in English
_LATIN_WORD = 5


def shares(text: str) -> dict[str, float]:
    """Returns {script: its fraction of the words}, largest first; {} for a text without letters.

    If a text has kana, its Chinese characters count as Japanese. Letters of scripts not in NAMES
    count as "other".

    Example:
      >>> shares("把 hello 译成中文")
      {'chinese': 0.7142857142857143, 'latin': 0.2857142857142857}
    """
    words: dict[str, float] = collections.defaultdict(float)
    for char, number in collections.Counter(text).items():
        script = _script(char)
        if script:
            words[script] += number / (
                _CJK_WORD if script in ("chinese", "japanese") else _LATIN_WORD
            )
    if words["japanese"] > 0.1 * words["chinese"]:
        words["japanese"] += words.pop("chinese", 0)
    total = sum(words.values())
    largest_first = sorted(words.items(), key=lambda item: -item[1])
    return {script: number / total for script, number in largest_first if number}


def _script(char: str) -> str | None:
    if char.isascii():
        return "latin" if char.isalpha() else None
    code = ord(char)
    for first, last, name in _RANGES:
        if first <= code <= last:
            return name
    if not char.isalpha():
        return None
    return "latin" if unicodedata.name(char, "").startswith("LATIN") else "other"
