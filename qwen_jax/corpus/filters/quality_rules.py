"""Rejects text by rules; a rejection has the rule's name and the measured value. Report: 2.1.

The measures depend on the kind of text: space-separated words (rules_english.py), characters
(rules_chinese.py), or lines of code (rules_code.py). These files list each rule with its limits and
their source. Text that the language stage identifies as code is measured as code. Formulas are not
measured, and a text that has many skips the rules about length and layout.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from qwen_jax.corpus import stage
from qwen_jax.corpus.filters import mathematics, rules_chinese, rules_code, rules_english
from qwen_jax.corpus.filters.language import CODE, FORMULA
from qwen_jax.corpus.filters.rules_chinese import ChineseRules
from qwen_jax.corpus.filters.rules_code import CodeRules
from qwen_jax.corpus.filters.rules_english import EnglishRules, Range
from qwen_jax.errors import unknown_name

_PAGE_RULES = frozenset(
    (  # length and layout: a response to an instruction may be a word, a list or a formula
        "words",
        "characters",
        "word_length",
        "run_length",
        "bullet_lines",
        "words_with_letters",
        "units_with_letters",
        "stop_words",
        "stop_characters",
        "braces",
        "boilerplate_lines",
        "sentences",
        "ended_lines",
        "short_lines",
        "new_lines",
    )
)
# A solution repeats the words of its problem, and GSM8K marks answers with ####.
_WORD_RULES = re.compile(r"hash_marks|ellipses|\w+grams?")
_FENCED = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```[ \t]*$|\Z)", re.M | re.S)  # code in Markdown
_WITHOUT_SPACES = frozenset(("zh", "ja", "th", "lo", "km", "my", "yue", "wuu"))
_CHINESE = frozenset(("zh", "yue", "wuu"))


@dataclasses.dataclass(frozen=True)
class QualityRules:
    """The limits of all rules."""

    english: EnglishRules = EnglishRules()
    chinese: ChineseRules = ChineseRules()
    code: CodeRules = CodeRules()
    formulas: float = 0.1  # ours: with a larger fraction of its characters, a text is mathematics


RECIPE = QualityRules()


class Rejection(NamedTuple):
    """Why a text was rejected."""

    rule: str
    value: float


def rejection(
    text: str, *, language: str, kind: str = "web", rules: QualityRules = RECIPE
) -> Rejection | None:
    """Returns the first rule that the text violates, or None. Cheap rules are tried first.

    Args:
      text: text of the document.
      language: ISO 639-1, such as "en" or "zh", or CODE or FORMULA of language.py.
      kind: one of stage.KINDS. An "instruction" (a turn of a conversation) skips the rules about
        length and layout. Only "web" pages have a maximum length; a book is kept. Code between ```
        is ignored, except in "code"; a text that is mostly such code is measured as code.
      rules: the limits.

    Raises:
      ConfigError: the kind is unknown.

    Example:
      >>> rejection("Too short to learn from.", language="en")
      Rejection(rule='words', value=5.0)
    """
    for rule, value, (low, high) in measures(text, language=language, kind=kind, rules=rules):
        if not low <= value <= high:
            return Rejection(rule, float(value))
    return None


def measures(
    text: str, *, language: str, kind: str = "web", rules: QualityRules = RECIPE
) -> Iterator[tuple[str, float, Range]]:
    """Yields (rule, value, allowed range) of every rule that applies, computed lazily."""
    if kind not in stage.KINDS:
        raise unknown_name("kind of text", kind, stage.KINDS, "quality_rules(kind)")
    if kind != "code" and "```" in text:
        prose = _FENCED.sub("\n", text)
        if 2 * len(prose) < len(text):
            kind, text = "code", "\n".join(line for line in text.splitlines() if "```" not in line)
        else:
            text = prose
    if kind == "code" or language == CODE:
        yield from rules_code.measures(text, rules=rules.code)
        return
    text, share = mathematics.without_formulas(text)
    is_math = language == FORMULA or share > rules.formulas
    if language in _WITHOUT_SPACES:
        found = rules_chinese.measures(text, rules=rules.chinese, chinese=language in _CHINESE)
    else:
        found = rules_english.measures(text, rules=rules.english, english=language == "en")
    for rule, value, (low, high) in found:
        by_page = rule in _PAGE_RULES and (is_math or kind == "instruction")
        if not by_page and not (is_math and _WORD_RULES.fullmatch(rule)):
            unlimited = kind != "web" and rule in ("words", "characters")
            yield rule, value, (low, math.inf if unlimited else high)


@dataclasses.dataclass(frozen=True)
class QualityStage:
    """A corpus stage that rejects texts that violate a rule."""

    name: ClassVar[str] = "quality"
    counted: ClassVar[tuple[str, ...]] = ()
    rules: QualityRules = RECIPE

    def __call__(self, table):
        return stage.reject_rows(
            table,
            lambda text, language, kind: rejection(
                text, language=language or "", kind=kind, rules=self.rules
            ),
        )
