"""Rules for text without spaces between words, mainly Chinese. Report: 2.1.

Where rules_english.py counts words, these rules count characters. An English word corresponds to
about 1.6 Chinese characters in modern text and to one in classical text. A line of 30 English
characters corresponds to one of 10 Chinese characters. The limits are loose enough for classical
text.
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from qwen_jax.corpus.filters.repetition import RepetitionRules, repetitions
from qwen_jax.corpus.filters.rules_english import BRACE, FEW_LINES, Range, line_measures

# Function words and the most common characters: modern, classical, simplified, traditional.
_STOP = frozenset(
    "的了是在不我有他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你对對"
    "生能而子那得于於着著下自之年过過后後作里用道行所然家种種事成方多经經么麼去法学學"
    "如都同现現当當没沒动動面起看定天分还還进進好小部其些主样樣理心她本前开開但因只从從"
    "想实實一二三十人卒字今存"
)
# A unit is a Chinese or kana character, a run of other letters, or a run of digits.
_UNIT = re.compile(
    r"[\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]|[^\W\d_"
    r"\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+|\d+"
)
_HAN = re.compile(r"[\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+")
_BULLET = re.compile(r"[-*•●◦▪■◆★▲‣–·○□]")
_SENTENCE = re.compile(
    r"[。！？!?；;…]+|\.(?=\s|$)|[：:]$", re.M
)  # text without any match is not prose
_LAST = tuple('。！？…；：，”’」』）》】.!?;:,)"')  # a line of verse ends with a comma
_BOILERPLATE = re.compile(
    r"版权所有|版權所有|隐私政策|隱私政策|使用条款|服务条款|ICP备|使用\s*cookies?|Cookies?\s*政策|"
    r"(?:启用|开启|打开|禁用|不支持)[^。\n]{0,8}JavaScript|"
    r"网站地图|返回首页|返回顶部|上一篇|下一篇|点击加载|设为首页|加入收藏",
    re.I,
)


@dataclasses.dataclass(frozen=True)
class ChineseRules:
    """Allowed (min, max) of each measure; the name of a field is the name of its rule."""

    characters: Range = (50, 160_000)  # Gopher's words; a classical character is about a word
    run_length: Range = (2, 60)  # for Gopher's word length; mean characters between punctuation
    hash_marks: Range = (0, 0.06)  # Gopher's 0.1 per word; "#" per unit
    ellipses: Range = (0, 0.06)  # Gopher's 0.1 per word; "……", "..." or "。。。" per unit
    bullet_lines: Range = (0, 0.9)  # Gopher; fraction of the lines
    ellipsis_lines: Range = (0, 0.3)  # Gopher; fraction of the lines
    units_with_letters: Range = (0.6, 1)  # Gopher's 0.8 of words; a date has 3 numbers in 6 units
    stop_characters: Range = (2, np.inf)  # Gopher; distinct characters of the 134 in _STOP
    lorem_ipsum: Range = (0, 0)  # C4; occurrences
    braces: Range = (0, 0.03)  # 0.05 per word in English; per unit
    boilerplate_lines: Range = (0, 0.2)  # as in English, with Chinese phrases
    sentences: Range = (1, np.inf)  # C4's 3: Chinese often has a comma where English has "."
    ended_lines: Range = (0.12, 1)  # FineWeb; fraction of lines that end with punctuation
    short_lines: Range = (0, 0.67)  # FineWeb; lines under 10 units without final punctuation
    new_lines: Range = (0, 0.19)  # FineWeb's 0.3 per word; per unit, without empty lines
    repetition: RepetitionRules = RepetitionRules(  # a typical word has two characters
        min_units=100, top_sizes=(4, 6, 8), duplicate_sizes=(10, 12, 14, 16, 18, 20)
    )


def measures(
    text: str, *, rules: ChineseRules, chinese: bool = True
) -> Iterator[tuple[str, float, Range]]:
    """Yields (rule, value, allowed range), cheap rules first.

    Args:
      text: text of the document.
      rules: the limits.
      chinese: whether the language is Chinese; run_length and stop_characters apply only then.
    """
    units = _UNIT.findall(text)
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    num_units, num_lines = max(len(units), 1), max(len(lines), 1)
    yield "characters", len(units), rules.characters
    runs = _HAN.findall(text)
    if chinese:
        yield "run_length", sum(map(len, runs)) / max(len(runs), 1), rules.run_length
    yield "hash_marks", text.count("#") / num_units, rules.hash_marks
    ellipses = text.count("……") + text.count("...") + text.count("。。。")
    yield "ellipses", ellipses / num_units, rules.ellipses
    numbers = sum(map(str.isdecimal, units))
    yield "units_with_letters", 1 - numbers / num_units, rules.units_with_letters
    if chinese:
        yield "stop_characters", len(_STOP.intersection(units)), rules.stop_characters
    yield "lorem_ipsum", text.lower().count("lorem ipsum"), rules.lorem_ipsum
    yield "braces", len(BRACE.findall(text)) / num_units, rules.braces
    yield "sentences", len(_SENTENCE.findall(text)), rules.sentences
    yield "new_lines", (len(lines) - 1) / num_units, rules.new_lines
    if num_lines >= FEW_LINES:
        ended = [line.endswith(_LAST) for line in lines]
        short = [
            not end and (len(line) < 10 or len(_UNIT.findall(line)) < 10)
            for line, end in zip(lines, ended, strict=True)
        ]
        yield from line_measures(lines, rules, bullet=_BULLET, boilerplate=_BOILERPLATE)
        yield "ended_lines", sum(ended) / num_lines, rules.ended_lines
        yield "short_lines", sum(short) / num_lines, rules.short_lines
    known: dict[str, int] = {}
    ids = np.fromiter((known.setdefault(unit, len(known)) for unit in units), np.int64, len(units))
    # A name in another script weighs as much as a Chinese word.
    lengths = np.minimum(np.fromiter(map(len, units), np.int64, len(units)), 2)
    for name, value, limit in repetitions(text, lines, ids, lengths, rules=rules.repetition):
        yield name, value, (0, limit)
