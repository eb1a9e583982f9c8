"""Numbers in answers: reading them, and the comparisons of GSM8K, Math23K and Math401."""

import collections
import re
import unicodedata
from fractions import Fraction

from qwen_jax.grading import arithmetic

MAX_DIGITS = 400

# Also a minus sign and an en dash, which models write before digits, and the amount -$5.
_SIGN = r"(?:[-+−–]|(?<![\w$)\]])[-+−–]\\?\$(?=[\d.]))?"
# 1,234.5 · -7 · .5 · 1.5e-3, and what may follow: a denominator or a percent sign.
DECIMAL = (
    rf"(?:{_SIGN}(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|{_SIGN}\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\w|\.\d))?"
)
NUMBER = re.compile(
    r"(?<![A-Za-z\d])(?<!\d\.)(?:"  # not the 2 of CO2
    rf"{_SIGN}\d+ ?(?:又|\() ?\(?\d+\)? ?/ ?\(?\d+\){{0,2}}"  # 5又7/10, 5((7)/(10)), 5(7/10)
    rf"|{_SIGN}\({{0,2}}-?\d+\)? ?/ ?\(?\d+(?:\.\d+)?\){{0,2}}"  # 3/4, ((3)/(4))
    rf"|{DECIMAL}(?: ?%)?)"
)
_POWER_OF_TEN = re.compile(r"(.+)[eE]([-+]?\d{1,3})")
_CHINESE = re.compile(
    "百分之[零〇一二两三四五六七八九十百千万点]+|负?[零〇一二两三四五六七八九十百千万亿]+"
    "(?:分之|又|点)?[零〇一二两三四五六七八九十百千万亿分之]*"
)
_DIGITS = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6,
           "七": 7, "八": 8, "九": 9}  # fmt: skip
_PLACES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}

_TEN_TO = r"10 ?(?:\^|\*\*) ?[{(]?([-+]?\d{1,3})(?!\d)[)}]?"
# How else people, LaTeX and Chinese text write numbers -> how NUMBER reads them.
_SPELLINGS = [
    (re.compile(pattern), written)
    for pattern, written in (
        (r"[−–](?=\\?\$?[\d.])", "-"),
        (r"(?<![\w$)\]])([-+])\\?\$(?=[\d.])", r"\1"),  # -$5
        (r"\\%", "%"),
        (r"(?<=\d)(?:\{,\}|,?\\[!,]|\\!,\\!)(?=\d{3})", ""),  # 1{,}234 and 1\,234
        (r"\\[dtc]?frac ?\{ ?(-?\d+) ?\} ?\{ ?(\d+) ?\}", r"((\1)/(\2))"),
        (r"\\[dtc]?frac ?(\d) ?(\d)", r"((\1)/(\2))"),
        (r"(?<![\d.,/])(\d+) (\d+)/(\d+)(?![\d/])", r"\1((\2)/(\3))"),  # 1 1/2
        (r"负 ?(?=\d)", "-"),
        (r"百分之 ?(\d+(?:\.\d+)?)", r"\1%"),
        (r"(?<!\d)(\d+) ?分之 ?(\d+)", r"(\2)/(\1)"),  # from the first digit only: linear
        (rf"(?<=\d) ?(?:[×*]|\\times|\\cdot) ?{_TEN_TO}", r"e\1"),
        (rf"(?<![\d.]){_TEN_TO}", r"1e\1"),
    )
]
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")


def spelled(text: str) -> str:
    """Returns the text with its numbers as NUMBER reads them, in ASCII.

    Example:
      >>> spelled("答案是−1½, 百分之25, 3分之2, 1.2×10⁵")
      '答案是-1((1)/(2)), 25%, (2)/(3), 1.2e5'
    """
    text = _VULGAR.sub(_vulgar, text)
    text = _SUPERSCRIPT.sub(lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    text = unicodedata.normalize("NFKC", text)
    for pattern, written in _SPELLINGS:
        text = pattern.sub(written, text)
    return text


def _vulgar(match: re.Match[str]) -> str:
    over, _, under = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return f"(({over})/({under}))"


def number(text: str) -> Fraction | None:
    """Returns the exact value of a text that is one number, or None.

    Reads signs, thousands separators, decimals, fractions, mixed numbers, powers of ten, full-width
    digits, percents (80% is 4/5) and Chinese numerals.
    """
    if not isinstance(text, str) or len(text) > MAX_DIGITS:
        return None
    text = spelled(text).strip().strip("$ ").rstrip(".。")
    if (found := chinese_number(text)) is not None:
        return found
    if (scaled := _POWER_OF_TEN.fullmatch(text)) is not None:
        value = number(scaled[1])
        return None if value is None else value * Fraction(10) ** int(scaled[2])
    text = text.replace("⁄", "/").replace("又", "+")
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d*)?%?", text):
        text = text.replace(",", "")
    if text.startswith("-") and "+" in text:
        text = f"-({text[1:]})"
    return arithmetic.value(text)


def chinese_number(text: str) -> Fraction | None:
    """Returns the value of a Chinese numeral, such as 一百零二, 十二点五 or 百分之八十, or None."""
    negative = text.startswith("负")
    text = text.removeprefix("负")
    if len(text) > 40 or not text:
        return None
    whole, mixed, text = text.rpartition("又")
    start = _chinese_whole(whole) if mixed else 0
    under, fraction, over = text.partition("分之")
    if fraction:
        divisor = 100 if under == "百" else _chinese_whole(under)
        value = chinese_number(over)
        if not divisor or value is None or start is None:
            return None
        total = start + value / divisor
    else:
        integer, point, decimals = text.partition("点")
        value = _chinese_whole(integer)
        if value is None or mixed or point and not decimals:
            return None
        if any(c not in _DIGITS for c in decimals):
            return None
        digits = "".join(str(_DIGITS[c]) for c in decimals)
        total = Fraction(value) + Fraction(int(digits or 0), 10 ** len(digits))
    return -total if negative else total


def _chinese_whole(text: str) -> int | None:
    if not text or any(c not in _DIGITS and c not in _PLACES for c in text):
        return None
    if all(c in _DIGITS for c in text):  # 二〇二三
        return int("".join(str(_DIGITS[c]) for c in text))
    total = section = digit = 0
    for c in text:
        if c in _DIGITS:
            digit = _DIGITS[c]
        elif _PLACES[c] < 10**4:
            section += (digit or (1 if c == "十" and not digit else 0)) * _PLACES[c]
            digit = 0
        else:  # 亿 counts what is before it, 万 only what follows the last 亿
            part = section + digit
            total = (total + part) * 10**8 if c == "亿" else total + part * 10**4
            section = digit = 0
    return total + section + digit


def last_number(text: str, chinese: bool = False) -> str | None:
    """Returns the last number in the text as it is written, or None."""
    if (found := last_number_at(text)) is not None:
        return found[0]
    if chinese:
        for numeral in reversed(_CHINESE.findall(text)):
            if chinese_number(numeral) is not None:
                return numeral
    return None


def last_number_at(text: str) -> re.Match[str] | None:
    """Returns where the last number in the text is, or None."""
    last = collections.deque(NUMBER.finditer(text), maxlen=1)
    return last[0] if last else None


def gsm8k_equal(prediction: str | None, gold: str) -> bool:
    """Protocol qwen, chat: the numbers differ by at most 1e-4."""
    found, wanted = number(prediction or ""), number(gold)
    return found is not None and wanted is not None and abs(found - wanted) <= Fraction(1, 10**4)


def math23k_equal(prediction: str | None, gold: str) -> bool:
    """Within 1e-4 of the gold value, relative to it.

    80% is 0.8 only if the gold answer is a percent. A gold answer may be a
    mixed number or a fraction: 5((7)/(10)), ((2)/(3)).
    """
    found, wanted = number(prediction or ""), number(gold)
    if found is None or wanted is None:
        return False
    if "%" in unicodedata.normalize("NFKC", prediction or "") and "%" not in gold:
        return False
    return abs(found - wanted) <= abs(wanted) / 10**4


def math401_equal(prediction: str | None, gold: str) -> bool:
    """The published criterion: the numbers differ by less than 1e-3."""
    found, wanted = number(prediction or ""), number(gold)
    return found is not None and wanted is not None and abs(found - wanted) < Fraction(1, 1000)


def relative_error(prediction: str | None, gold: str) -> float:
    """Math401's second measure: |prediction - gold| / max(|gold|, 1), at most 10.

    10 for no number.
    """
    found, wanted = number(prediction or ""), number(gold)
    if found is None or wanted is None:
        return 10.0
    return min(10.0, float(abs(found - wanted) / max(abs(wanted), 1)))
