"""Rules that a generated sample has to pass before people look at it. Report: 3.4.

Those for instructions are of self-instruct (Wang et al. 2023) with their Chinese counterparts; each
returns the reason for which a text is refused, or None.
"""

import dataclasses
import re

from qwen_jax.config import option
from qwen_jax.data.chat import react
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.synthetic import scripts
from qwen_jax.synthetic.novelty import words

# A language model cannot see or send these.
_FORBIDDEN = re.compile(
    r"\b(images?|graphs?|pictures?|photos?|files?|maps?|draw|plot|go to|videos?|audio)\b"
    r"|图片|图像|照片|图表|文件|地图|绘制|画一|画出|视频|音频|录音",
    re.IGNORECASE,
)
_PROGRAM = re.compile(r"^(write|create) a (computer )?program\b|^(写|编写)一个程序", re.IGNORECASE)
_ODD_START = re.compile(r"^[^\w\"'“‘「《(（]")
_REPEATED = re.compile(r"(.{1,40}?)\1{9,}", re.DOTALL)  # ten times the same


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is let through. A word is one of letters, or one Chinese character."""

    novelty: float = option(0.7, "Rouge-L with anything kept may be at most this (self-instruct)")
    min_words: int = option(4, "of an instruction or question (self-instruct)")
    max_words: int = option(150, "the same (self-instruct)")
    max_answer_words: int = option(1000, "longer answers are refused")
    languages: tuple[str, ...] = option(
        ("latin", "chinese"), "scripts; the main one must be among them"
    )

    def __post_init__(self):
        if not 0 < self.novelty <= 1:
            raise ConfigError(
                f"novelty={self.novelty} is outside (0, 1].",
                "Rules(novelty)",
                "use 0.7; 1 refuses nothing but the same words again.",
            )
        if not 1 <= self.min_words <= self.max_words or self.max_answer_words < 1:
            raise ConfigError(
                f"lengths {self.min_words}, {self.max_words}, "
                f"{self.max_answer_words} make no sense.",
                "Rules",
                "use 1 <= min_words <= max_words, and max_answer_words above 0.",
            )
        for name in self.languages:
            if name not in scripts.NAMES:
                raise unknown_name("script", name, scripts.NAMES, "Rules(languages)")


def question_fault(text: str, rules: Rules) -> str | None:
    """Why an instruction or a question is refused, novelty aside."""
    size = len(words(text))
    if size < rules.min_words:
        return f"shorter than {rules.min_words} words"
    if size > rules.max_words:
        return f"longer than {rules.max_words} words"
    if _ODD_START.search(text):
        return "begins with a sign"
    found = _FORBIDDEN.search(text)
    if found:
        return f"forbidden word {found[0].lower()!r}"
    if _PROGRAM.search(text):
        return "asks for a program without saying which"
    return _language_fault(text, rules)


def answer_fault(question: str, answer: str, finish: str, rules: Rules) -> str | None:
    """Why an answer to an instruction is refused.

    Args:
      finish: "stop" if it came to its end, as in Completion.
    """
    fault = _common_fault(answer, finish, rules)
    if fault:
        return fault
    if words(answer) == words(question):
        return "an answer that repeats the question"
    # An answer may be a number, or be asked for in another language: no rule for its script.
    return None


def react_fault(text: str, finish: str, tools: list[react.Tool], rules: Rules) -> str | None:
    """Why a transcript is refused: its form, its calls, its length."""
    fault = _common_fault(text, finish, rules)
    if fault:
        return fault
    try:
        react.check_calls(react.parse(text), tools)
    except react.Malformed as reason:
        return str(reason)
    return None


def _common_fault(text: str, finish: str, rules: Rules) -> str | None:
    if not text.strip():
        return "an empty answer"
    if finish != "stop":
        return "an answer that was cut off"
    if len(words(text)) > rules.max_answer_words:
        return f"an answer of more than {rules.max_answer_words} words"
    if _REPEATED.search(text):
        return "an answer that repeats itself"
    if "\N{REPLACEMENT CHARACTER}" in text:
        return "an answer with broken characters"
    return None


def _language_fault(text: str, rules: Rules) -> str | None:
    main = next(iter(scripts.shares(text)), "no letters")
    return None if main in rules.languages else f"written in another script ({main})"
