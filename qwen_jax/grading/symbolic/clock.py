"""Times of day as answers: 5:30 pm, 5:30 p.m. and 17:30. Without am or pm, 5:30 stays a ratio."""

import collections
import re
from typing import NamedTuple

_HALVES = r"(?P<half>[ap])\s?\.?\s?m(?![a-z])\.?"
_SPACE = r"(?:\s|~|\\ |\\,|\\!)*"
_TIME = rf"(?P<hour>\d{{1,2}})(?::(?P<minute>\d\d))?(?::(?P<second>\d\d))?{_SPACE}"
_TWELVE = re.compile(rf"{_TIME}{_HALVES}", re.IGNORECASE)
_FULL_DAY = re.compile(r"(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d))?")
_SHOWN = re.compile(rf"(?<![\w:.,/])\d{{1,2}}(?::\d\d){{0,2}}{_SPACE}{_HALVES}", re.IGNORECASE)
_WORDS = {"noon": 12 * 3600, "midnight": 0}
_LATEX = re.compile(r"\\(?:text|mathrm|mbox|textrm)\s*\{([^{}]*)\}|[${}]")


class Time(NamedTuple):
    """A time of day.

    Attributes:
      seconds: since midnight.
      half: "a" or "p"; "" if the text does not have it.
    """

    seconds: int
    half: str


def read(text: str) -> Time | None:
    """Returns the time of day that the whole text is, or None.

    A text without am or pm is one only from 13:00 and before 1:00, where it can have one meaning.
    """
    if len(text) > 60:
        return None
    text = _LATEX.sub(lambda part: part[1] or "", text).strip()
    text = text if text.lower().endswith("m.") else text.rstrip(". ")
    if text.lower() in _WORDS:
        return Time(_WORDS[text.lower()], "word")
    found = _TWELVE.fullmatch(text) or _FULL_DAY.fullmatch(text)
    if found is None:
        return None
    half = found.groupdict().get("half", "").lower()
    hour, minute, second = (int(found[key] or 0) for key in ("hour", "minute", "second"))
    if (
        minute > 59
        or second > 59
        or not (1 <= hour <= 12 if half else hour == 0 or 13 <= hour < 24)
    ):
        return None
    if half:
        hour = hour % 12 + 12 * (half == "p")
    return Time(3600 * hour + 60 * minute + second, half)


def last_at(text: str) -> re.Match[str] | None:
    """Returns where the last time with am or pm in a text is, or None."""
    last = collections.deque(_SHOWN.finditer(text), maxlen=1)
    return last[0] if last else None
