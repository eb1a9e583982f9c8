"""Which language a document is in. Report: 2.1.

Source code and formulas are in none: an identifier of languages finds Welsh or Latin in them, and a
threshold would throw them out. They are recognized first, named so, and kept.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import ClassVar

from qwen_jax.config import option
from qwen_jax.corpus.arrow import pa
from qwen_jax.corpus.stage import Verdict, reject, set_column
from qwen_jax.errors import DataError

CODE, FORMULA = "code", "formula"
# Identified apart, and taken for one another: what is written in China is Chinese here.
_WRITTEN_ALIKE = {"wuu": "zh", "yue": "zh", "lzh": "zh", "gan": "zh", "hak": "zh", "nan": "zh"}
# What sources write for the languages that have rules of their own (quality_rules.py).
_SAID = {
    "english": "en",
    "eng": "en",
    "chinese": "zh",
    "zho": "zh",
    "chi": "zh",
    "cmn": "zh",
    "mandarin": "zh",
    "japanese": "ja",
    "jpn": "ja",
    "thai": "th",
    "tha": "th",
    "lao": "lo",
    "khmer": "km",
    "khm": "km",
    "burmese": "my",
    "mya": "my",
    "und": "",
    "unknown": "",
    "none": "",
}
# Characters looked at, at the beginning, in the middle and at the end each: for code and formulas,
# and for the language, which is told as well from less, and costs 50 ns a byte.
_SAMPLE, _SHORT_SAMPLE = 600, 200
_CODE_LINE = re.compile(
    r"[;{}]\s*(//.*)?$|^\s*(#include|#define|#!|//|/\*|\*/|@\w+|<\?php|import [\w.{*]|"
    r"from [\w.]+ import|def \w+\(|class \w+.*[:{]$|return\b|elif |else:|try:|except\b.*:|"
    r"public |private |"
    r"static |const |let |var |function\b|fn |func |package |using |end$|\)\s*->|if .*:$|for .*:$|"
    r"while .*:$|"
    r"[\w.\[\]'\"]+\s*[-+*/|&]?=[^=]|[\w.]+\(.*\)$|>>> |[\])}],?$)"
)
_LATEX = re.compile(r"\\[a-zA-Z]+|\\[()\[\]{},;!%]")
_MATH = re.compile(r"[-+*/^_=<>≤≥≠≈∑∫∏√∞∂∇±×÷∈∉⊂∪∩∀∃→⇒⇔|(){}\[\]\d.,$&%!°α-ωΑ-Ω]")
_WORD = re.compile(r"[^\W\d_]{3,}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@functools.cache
def _identifier():
    try:
        from py3langid.langid import LanguageIdentifier
    except ImportError as error:
        raise DataError(
            "identifying languages needs py3langid.",
            "the language stage",
            "pip install 'qwen_jax[data]'.",
        ) from error
    return LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """(ISO 639-1 name, probability), or (CODE or FORMULA, the share of it); ("", 0) of no text."""
    sample = _sample(text, _SAMPLE)
    if not sample.strip():
        return "", 0.0
    latex = len(_LATEX.findall(sample)) * 25 > len(sample)  # `a = b` is a line of code as well
    shares = {CODE: (code_share, 0.5), FORMULA: (formula_share, 0.6)}
    for name in (FORMULA, CODE) if latex else (CODE, FORMULA):
        share_of, least = shares[name]
        if (share := share_of(sample)) > least:
            return name, share
    together: dict[str, float] = {}
    for name, probability in _identifier().rank(_sample(text, _SHORT_SAMPLE)):
        name = _WRITTEN_ALIKE.get(str(name), str(name))
        together[name] = together.get(name, 0.0) + float(probability)
    return max(together.items(), key=lambda item: item[1])


def code_of(said: str) -> str:
    """The ISO 639-1 name of what a source calls a language, as far as it is known here; "" where it
    says that it does not know.

    Example:
      >>> [code_of(said) for said in ("en-US", "eng_Latn", "Chinese (simplified)", "de")]
      ['en', 'en', 'zh', 'de']
    """
    first: str = (re.findall(r"\w+?(?=_|\b)", said.lower()) or [""])[0]
    return _WRITTEN_ALIKE.get(first, _SAID.get(first, first))


def code_share(text: str) -> float:
    """Of the lines that are not empty, how many look like source code."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(_CODE_LINE.search(line) is not None for line in lines) / max(1, len(lines))


def formula_share(text: str) -> float:
    """Of the characters that are not white space, how many are mathematical notation."""
    rest, commands = _LATEX.subn("", text)
    in_commands = len(text) - len(rest)
    symbols = len(_MATH.findall(rest)) + in_commands
    words = sum(map(len, _WORD.findall(rest)))
    operators = commands + len(re.findall(r"[=^_+<>≤≥∑∫√∈→]", rest))
    if not symbols or (words and operators * 40 < symbols + words):
        return 0.0
    return symbols / (symbols + words)


def _sample(text: str, size: int) -> str:
    if len(text) <= 3 * size:
        return text
    middle = (len(text) - size) // 2
    return "\n".join((text[:size], text[middle : middle + size], text[-size:]))


@dataclasses.dataclass(frozen=True)
class Language:
    """Fills `language` and `language_score`; what a source says is believed. Documents in
    others than `wanted`, or in no sure one, are rejected; code and formulas are not."""

    name: ClassVar[str] = "language"
    counted: ClassVar[tuple[str, ...]] = ("language",)

    wanted: tuple[str, ...] = option((), "such as en,zh; none: all")
    threshold: float = option(0.3, "ours: probability below which no language is sure")

    def __call__(self, table: pa.Table) -> pa.Table:
        names, scores, verdicts = [], [], []
        columns = (table[name].to_pylist() for name in ("text", "language", "kind"))
        for text, language, kind in zip(*columns, strict=True):
            if kind == "code":
                found, score = language or CODE, 1.0
            else:
                said = code_of(language or "")
                found, score = (said, 1.0) if said else identify(text)
            names.append(found)
            scores.append(score)
            verdicts.append(self.verdict(found, score, kind))
        table = set_column(table, "language", names, pa.string())
        return reject(set_column(table, "language_score", scores, pa.float32()), verdicts)

    def verdict(self, language: str, score: float, kind: str) -> Verdict:
        """Whether a document stays."""
        if kind == "code" or language in (CODE, FORMULA):
            return None
        if score < self.threshold:
            return "language_unsure", score
        if self.wanted and language not in self.wanted:
            return "language", language
        return None
