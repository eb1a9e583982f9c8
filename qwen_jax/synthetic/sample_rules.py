"""Rules that a generated sample must pass before people review it. Report: 3.4.

The rules for instructions are those of self-instruct (Wang et al. 2023), with Chinese counterparts.
Each function returns the reason for a rejection, or None.
"""

import dataclasses
import re

from qwen_jax.config import option
from qwen_jax.data.chat import react
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.ranges import ONE_OR_MORE, Checked, Range
from qwen_jax.synthetic import scripts
from qwen_jax.synthetic.novelty import words

# A text-only model cannot read or produce these.
_FORBIDDEN = re.compile(
    r"\b(images?|graphs?|pictures?|photos?|files?|maps?|draw|plot|go to|videos?|audio)\b"
    r"|图片|图像|照片|图表|文件|地图|绘制|画一|画出|视频|音频|录音",
    re.IGNORECASE,
)
_PROGRAM = re.compile(r"^(write|create) a (computer )?program\b|^(写|编写)一个程序", re.IGNORECASE)
_ODD_START = re.compile(r"^[^\w\"'“‘「《(（]")
_REPEATED = re.compile(r"(.{1,40}?)\1{9,}", re.DOTALL)  # ten or more repeats


@dataclasses.dataclass(frozen=True)
class Rules(Checked, where="--rules.{}"):
    """Limits of the rules. A word is a run of letters and digits, or one Chinese character."""

    novelty: float = option(
        0.7,
        "maximum Rouge-L of a text with any kept sample (self-instruct)",
        Range(above=0, at_most=1),
    )
    min_words: int = option(
        4, "minimum words of an instruction or question (self-instruct)", ONE_OR_MORE
    )
    max_words: int = option(
        150, "maximum words of an instruction or question (self-instruct)", ONE_OR_MORE
    )
    max_answer_words: int = option(1000, "maximum words of an answer", ONE_OR_MORE)
    languages: tuple[str, ...] = option(
        ("latin", "chinese"), "scripts to accept as the main script of an instruction or question"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.min_words > self.max_words:
            raise ConfigError(
                f"min_words={self.min_words} is above max_words={self.max_words}.",
                "--rules.min_words, --rules.max_words",
                "use a minimum of at most the maximum.",
            )
        for name in self.languages:
            if name not in scripts.NAMES:
                raise unknown_name("script", name, scripts.NAMES, "--rules.languages")


def question_fault(text: str, rules: Rules) -> str | None:
    """Returns why an instruction or question is rejected; does not check its novelty."""
    size = len(words(text))
    if size < rules.min_words:
        return f"shorter than {rules.min_words} words"
    if size > rules.max_words:
        return f"longer than {rules.max_words} words"
    if _ODD_START.search(text):
        return "starts with punctuation"
    found = _FORBIDDEN.search(text)
    if found:
        return f"forbidden word {found[0].lower()!r}"
    if _PROGRAM.search(text):
        return "asks for a program without saying which"
    return _language_fault(text, rules)


def answer_fault(question: str, answer: str, finish: str, rules: Rules) -> str | None:
    """Returns why an answer to an instruction is rejected.

    Args:
      finish: "stop" if the answer is complete, as in Completion.
    """
    fault = _common_fault(answer, finish, rules)
    if fault:
        return fault
    if words(answer) == words(question):
        return "an answer that repeats the question"
    # The script is not checked: an answer may be a number, or be requested in another language.
    return None


def react_fault(text: str, finish: str, tools: list[react.Tool], rules: Rules) -> str | None:
    """Returns why a ReAct transcript is rejected: its format, its calls or its length."""
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
        return "a truncated answer"
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
