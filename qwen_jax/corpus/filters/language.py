"""Identifies the language of a document. Report: 2.1.

Language identifiers mistake source code and formulas for Welsh or Latin, and a threshold would
reject them. They are therefore detected first, labeled as such, and kept.
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
from qwen_jax.ranges import FRACTION, Checked

CODE, FORMULA = "code", "formula"
# Varieties of written Chinese that identifiers confuse; all count as Chinese here.
_CHINESE_VARIETIES = {"wuu": "zh", "yue": "zh", "lzh": "zh", "gan": "zh", "hak": "zh", "nan": "zh"}
# Names that sources use for the languages that quality_rules.py distinguishes.
_LANGUAGE_NAMES = {
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
# Characters sampled at each of the start, middle and end of a text: to detect code and formulas,
# and to identify the language, which costs 50 ns per byte and needs fewer characters.
_SAMPLE, _SHORT_SAMPLE = 600, 200
_CODE_LINE = re.compile(
    r"[;{}]\s*(//.*)?$|^\s*(#include|#define|"
    r"#\s*(?:if|ifdef|ifndef|elif|else|endif|undef|pragma)\b|"
    r"#!|//|/\*|\*/|@\w+|<\?php|import [\w.{*]|"
    r"from [\w.]+ import|def \w+\(|class \w+.*[:{]$|return\b|elif |else:|try:|except\b.*:|"
    r"public |private |"
    r"static |const |let |var |function\b|fn |func |package |using |end$|\)\s*->|if .*:$|for .*:$|"
    r"while .*:$|"
    r"[\w.\[\]'\"]+\s*[-+*/|&]?=[^=]|[\w.]+\(.*\)$|>>> |[\])}],?$)"
)
_COMMENT = re.compile(  # an unfinished one extends to the end
    r'^[ \t]*[rRbBuU]?"""(?:[^"]|"(?!""))*(?:"""|\Z)|'
    r"^[ \t]*[rRbBuU]?'''(?:[^']|'(?!''))*(?:'''|\Z)|"
    r"(?:^|(?<=\s))/\*(?:[^*]|\*(?!/))*(?:\*/|\Z)",
    re.M,
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
            "py3langid is not installed.",
            "the language stage",
            "pip install 'qwen_jax[data]'.",
        ) from error
    return LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """Returns (ISO 639-1 code, probability) or (CODE or FORMULA, fraction); ("", 0) if empty."""
    sample = _sample(_without_comments(text), _SAMPLE)
    if not sample.strip():
        return "", 0.0
    latex = len(_LATEX.findall(sample)) * 25 > len(sample)  # `a = b` also looks like code
    shares = {CODE: (code_share, 0.5), FORMULA: (formula_share, 0.6)}
    for name in (FORMULA, CODE) if latex else (CODE, FORMULA):
        share_of, threshold = shares[name]
        if (share := share_of(sample)) > threshold:
            return name, share
    probabilities: dict[str, float] = {}
    for name, probability in _identifier().rank(_sample(text, _SHORT_SAMPLE)):
        name = _CHINESE_VARIETIES.get(str(name), str(name))
        probabilities[name] = probabilities.get(name, 0.0) + float(probability)
    return max(probabilities.items(), key=lambda item: item[1])


def _without_comments(text: str) -> str:
    """Returns the text without docstrings and comments of several lines, which are prose."""
    if '"""' not in text and "'''" not in text and "/*" not in text:
        return text
    rest = _COMMENT.sub("", text)
    return rest if rest.strip() else text


def code_of(name: str) -> str:
    """Returns the ISO 639-1 code for the name that a source uses for a language.

    For an unrecognized name, its first word is returned in lowercase; names such as "unknown" give
    "".

    Example:
      >>> [code_of(name) for name in ("en-US", "eng_Latn", "Chinese (simplified)", "de")]
      ['en', 'en', 'zh', 'de']
    """
    first: str = (re.findall(r"\w+?(?=_|\b)", name.lower()) or [""])[0]
    return _CHINESE_VARIETIES.get(first, _LANGUAGE_NAMES.get(first, first))


def code_share(text: str) -> float:
    """Returns the fraction of non-empty lines that look like source code."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(_CODE_LINE.search(line) is not None for line in lines) / max(1, len(lines))


def formula_share(text: str) -> float:
    """Returns the fraction of mathematical notation among the non-whitespace characters."""
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
class Language(Checked, where="--language.{}"):
    """Sets `language` and `language_score`, and rejects unwanted or uncertain languages.

    A language declared by the source is trusted. Code and formulas are never rejected.
    """

    name: ClassVar[str] = "language"
    counted: ClassVar[tuple[str, ...]] = ("language",)

    wanted: tuple[str, ...] = option((), "languages to keep, such as en,zh; empty: all")
    threshold: float = option(0.3, "minimum probability of the detected language (ours)", FRACTION)

    def __call__(self, table: pa.Table) -> pa.Table:
        names, scores, verdicts = [], [], []
        columns = (table[name].to_pylist() for name in ("text", "language", "kind"))
        for text, language, kind in zip(*columns, strict=True):
            if kind == "code":
                found, score = language or CODE, 1.0
            else:
                given = code_of(language or "")
                found, score = (given, 1.0) if given else identify(text)
            names.append(found)
            scores.append(score)
            verdicts.append(self.verdict(found, score, kind))
        table = set_column(table, "language", names, pa.string())
        return reject(set_column(table, "language_score", scores, pa.float32()), verdicts)

    def verdict(self, language: str, score: float, kind: str) -> Verdict:
        """Returns why a document is rejected, or None to keep it."""
        if kind == "code" or language in (CODE, FORMULA):
            return None
        if score < self.threshold:
            return "language_unsure", score
        if self.wanted and language not in self.wanted:
            return "language", language
        return None
