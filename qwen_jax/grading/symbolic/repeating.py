r"""Repeating decimals: every way to write 0.1666... -> 0.1\overline{6}, and its exact value.

Read are a bar (\overline, \bar, or a combining one), dots over the first and the last digit of the
period (\dot), the period in brackets behind the point, and an ellipsis behind three periods.
"""

import re
from fractions import Fraction

_MAX_PERIOD = 12  # digits of a period that an ellipsis continues
_BAR = re.compile(r"(?<=[.\d])\\(?:overline|bar)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_COMBINING_BAR = re.compile(r"(?<=[.\d])((?:\d[̅̄])+)")
_MARK = "\ue000"  # before a digit with a dot
_DOT = re.compile(r"\\dot\s*(?:\{\s*(\d)\s*\}|(\d))|(\d)̇")
_DOTS = re.compile(rf"(?<![\d.])(\d*\.\d*){_MARK}(\d)(?:(\d*){_MARK}(\d))?(?!\d)")
_BRACKETS = re.compile(r"(?<![\d.])(\d+\.)\((\d+)\)(?!\d)")
_ELLIPSIS = re.compile(r"(?<![\d.])(\d*\.)(\d+)(?:\.\.\.+|…|\s?\\(?:l|c)?dots(?![A-Za-z]))")
REPEATING = r"\d*\.\d*\\overline\{\d+\}"  # what `spelled` returns, as a token


def spelled(text: str) -> str:
    r"""Returns the text with every repeating decimal as digits and \overline{period}."""
    if "." not in text:
        return text
    text = _COMBINING_BAR.sub(lambda bar: rf"\overline{{{re.sub(r'[^0-9]', '', bar[1])}}}", text)
    text = _BAR.sub(lambda bar: rf"\overline{{{bar[1] or bar[2]}}}", text)
    text = _DOT.sub(lambda dot: f"{_MARK}{dot[1] or dot[2] or dot[3]}", text)
    text = _DOTS.sub(
        lambda dots: rf"{dots[1]}\overline{{{dots[2]}{dots[3] or ''}{dots[4] or ''}}}", text
    )
    text = text.replace(_MARK, "")
    text = _BRACKETS.sub(r"\1\\overline{\2}", text)
    return _ELLIPSIS.sub(_continued, text)


def value(text: str) -> Fraction:
    r"""Returns the value of one decimal as `spelled` writes it: 0.1\overline{6} is 1/6."""
    fixed, _, period = text.removesuffix("}").partition(r"\overline{")
    places = len(fixed.partition(".")[2])
    start = Fraction("0" + fixed if fixed != "." else 0)
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10**places)


def _continued(match: re.Match[str]) -> str:
    """0.333... has the period 3; 3.14159... has none, and stays as it is."""
    whole, digits = match[1], match[2]
    for length in range(1, min(_MAX_PERIOD, len(digits) // 3) + 1):
        period = digits[-length:]
        if digits.endswith(period * 3):
            return rf"{whole}{digits[:-length]}\overline{{{period}}}"
    return match[0]
