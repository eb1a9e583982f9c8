"""Finds the answer in what a model wrote, and names the rule that found it.

A `kind` is a rule of one protocol; `KINDS` lists them. Rules of released scripts are kept with
their quirks (`gsm8k`: of "1,234" it takes 234), so that scores can be compared; ours stand next to
them under other names. Each takes time proportional to the length of the text.
"""

import collections
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from qwen_jax.errors import unknown_name
from qwen_jax.grading import choices, numbers
from qwen_jax.grading.math import readable
from qwen_jax.grading.symbolic import clock
from qwen_jax.grading.symbolic.text import boxed, joined_boxes


class Extraction(NamedTuple):
    """The answer, None if the text has none, and the rule that decided."""

    answer: str | None
    rule: str


def extract_answer(text: str, *, kind: str, options: Mapping[str, str] | None = None) -> str | None:
    """Returns the answer in `text`, or None. See `extract`."""
    return extract(text, kind, options=options).answer


def extract(text: str, kind: str, *, options: Mapping[str, str] | None = None) -> Extraction:
    """Returns the answer in `text` and the rule that found it.

    Args:
      text: a completion, already cut at the task's stop strings.
      kind: one of `KINDS`.
      options: letter -> text of a choice, for the kinds of multiple choice; `question` for C-Eval.

    Raises:
      ConfigError: an unknown kind.
    """
    if kind in choices.CASCADES:
        return Extraction(*choices.choose(text, options or {}, kind))
    if kind not in KINDS:
        raise unknown_name("kind of answer", kind, [*KINDS, *choices.CASCADES], "kind")
    return KINDS[kind](text)


# MATH


def _boxed(text: str) -> Extraction:
    boxes = boxed(text)
    if not boxes:
        return Extraction(None, "no box")
    return Extraction(joined_boxes(text, boxes).strip(), "box")


_MINERVA = "final answer is"
_HOPE = "I hope it is correct"
_MINERVA_END = re.compile(rf". {_HOPE}.")
_FRACTION = re.compile(r"[-−]?\\[dtc]?frac ?\{ ?-?\d+ ?\} ?\{ ?\d+ ?\}")  # outside of a formula
_PHRASES = ("final answer is", "answer is", "答案是", "答案为", "答案:", "answer:")


def _math(text: str) -> Extraction:
    """The last box, else the sentence that states the answer, else what looks like one."""
    if (found := _boxed(text)).answer:
        return found
    rest, phrase = _behind_phrase(text)
    if rest is not None:
        stated = _stated(rest)
        if stated and not readable(stated):  # The largest $n$ is 34
            stated = _last_shown(stated)[0] or stated
        if stated:
            return Extraction(stated, "minerva phrase" if phrase == _MINERVA else "phrase")
    if readable(text):
        return Extraction(text.strip(), "whole text")
    answer, what = _last_shown(text)
    return Extraction(answer, f"weak: last {what}" if answer else "no answer")


def _behind_phrase(text: str) -> tuple[str | None, str]:
    """What follows the last phrase that announces an answer, and the phrase."""
    lower = text.lower()
    if len(lower) != len(text):  # a few characters have two in lower case
        lower = text
    found = [(at + len(p), len(p), p) for p in _PHRASES if (at := lower.rfind(p)) >= 0]
    if not found:
        return None, ""
    end, _, phrase = max(found)
    return text[end:], phrase


def _stated(rest: str) -> str:
    """The answer at the start of `rest`: a formula in dollar signs, or up to the sentence's end."""
    rest = rest.lstrip(" :：\n*")
    if (hope := rest.find(_HOPE)) >= 0:
        return rest[:hope].strip().rstrip(".").strip()
    if rest.startswith("$"):
        marks = "$$" if rest.startswith("$$") else "$"
        end = re.compile(rf"(?<!\\){re.escape(marks)}").search(rest, len(marks))  # $\$5$
        if end is not None:
            return rest[len(marks) : end.start()].strip()
    line = rest.partition("\n")[0]
    end = re.search(r"\.(?:\s|$)|。", line)
    return (line[: end.start()] if end else line).strip().strip("*").strip()


def _last_shown(text: str) -> tuple[str | None, str]:
    """The last formula that is an answer, time of day or number, whichever comes last."""
    shown = []
    for first, last in ((r"\(", r"\)"), (r"\[", r"\]")):
        close = text.rfind(last)
        begin = text.rfind(first, 0, close) if close >= 0 else -1
        if begin >= 0:
            shown.append((close, text[begin + 2 : close], "formula"))
    marks = [match.start() for match in re.finditer(r"(?<!\\)\$+", text)]
    if marks and len(marks) % 2 == 0:
        shown.append((marks[-1], text[marks[-2] : marks[-1]].strip("$"), "formula"))
    if (fraction := _last_match(_FRACTION, text)) is not None:
        shown.append((fraction.end(), fraction[0], "formula"))
    shown = [item for item in shown if readable(item[1])]
    if (time := clock.last_at(text)) is not None:
        shown.append((time.end(), time[0], "time of day"))
    if (number := numbers.last_number_at(text)) is not None:
        shown.append((number.end(), number[0], "number"))
    if not shown:
        return None, ""
    # A number inside the formula ends before the formula does.
    _, answer, what = max(shown)
    return answer.strip(), what


def _minerva(text: str) -> Extraction:
    """lm-eval's minerva_math: between its two sentences, on one line.

    The periods of the second sentence may be any characters, and a text that ends may lack it.
    """
    first = "Final Answer: The final answer is"
    for line in f"{text}{_HOPE}.".split("\n"):
        begin = line.find(first)
        end = _MINERVA_END.search(line, begin + len(first)) if begin >= 0 else None
        if end is not None:
            return Extraction(line[begin + len(first) : end.start()].strip(), "phrase")
    return Extraction(None, "no phrase")


def _hendrycks(text: str) -> Extraction:
    """lm-eval's hendrycks_math: between the first and the last dollar sign, else everything."""
    first, last = text.find("$"), text.rfind("$")
    if first < last:
        return Extraction(text[first + 1 : last], "dollar signs")
    return Extraction(text, "whole text")


# GSM8K

_CHAT_NUMBER = re.compile(
    r"[+-]?(?=\.?[0-9])"  # a sign, if a digit follows
    r"(?:0|[1-9]\d{0,2}(?:,\d{3})*|\d*)?(?:\.\d*)?"  # 1,234 or a run of digits, and decimals
    r"(?=\D|$)"
)


def _gsm8k(text: str) -> Extraction:
    """Protocol qwen, base: the last run of digits, if Python reads it as an integer."""
    found = _last(re.compile(r"\d+"), text)
    if found is None:
        return Extraction(None, "no digits")
    is_python = found.isascii() and (found[0] != "0" or not found.strip("0"))
    if not is_python or len(found) > numbers.MAX_DIGITS:
        return Extraction(None, "last digits are no integer")
    return Extraction(str(int(found)), "last digits")


def _gsm8k_chat(text: str) -> Extraction:
    """Protocol qwen, chat: the last number with its sign and decimals, without commas."""
    found = _last(_CHAT_NUMBER, text)
    if found is None:
        return Extraction(None, "no number")
    return Extraction(found.replace(",", "").replace("+", "").strip(), "last number")


def _gsm8k_strict(text: str) -> Extraction:
    found = re.search(r"#### (-?[0-9.,]+)", text)
    return Extraction(found[1], "####") if found else Extraction(None, "no ####")


def _gsm8k_flexible(text: str) -> Extraction:
    found = _last(re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+"), text)
    if found is None:
        return Extraction(None, "no number")
    return Extraction(found, "last number")


def lm_eval_normalized(answer: str) -> str:
    """What lm-eval's GSM8K compares: without commas, dollar signs, `#### ` and a final period."""
    for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
        answer = re.sub(pattern, "", answer)
    return answer.lower()


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = collections.deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = _last_match(pattern, text)
    return None if found is None else found[0]


# Math401, Math23K


_CLAUSE = re.compile(r"(?:[^,，;；。.]|(?<=\d)[,.](?=\d))*")


def _behind_equals(text: str) -> str:
    """What follows the last = of the first clause, if a number does: 2 + 3 = 5."""
    clause = _CLAUSE.match(text)
    _, equals, rest = clause[0].rpartition("=") if clause is not None else ("", "", "")
    return rest if equals and numbers.NUMBER.search(rest) else text


def _fixed_phrase(text: str, chinese: bool) -> Extraction:
    """The number behind the last `The answer is` or 答案是, else the last number."""
    text = numbers.spelled(text)
    rest, _ = _behind_phrase(text)
    if rest is not None:
        rest = rest.partition("\n")[0][:200]
        rest = _behind_equals(rest)
        if (found := numbers.NUMBER.search(rest)) is not None:
            return Extraction(found[0], "phrase")
        if chinese and (found := numbers.last_number(rest, chinese=True)) is not None:
            return Extraction(found, "phrase")
    found = numbers.last_number(text, chinese=chinese)
    return Extraction(found, "last number" if found is not None else "no number")


# BBH


def _bbh(text: str) -> Extraction:
    """The text behind the last `the answer is `, up to a blank line, without its final period."""
    text = text.partition("\n\n")[0]
    _, phrase, answer = text.rpartition("the answer is ")
    answer = answer.strip()
    rule = "phrase" if phrase else "whole text"
    return Extraction(answer.removesuffix("."), rule)


_ANSWER_IS = re.compile(r"the answer is:?[ *]*", re.IGNORECASE)


def _bbh_chat(text: str) -> Extraction:
    """Ours: the rest of the line behind the last phrase, without its period and asterisks."""
    found = list(_ANSWER_IS.finditer(text))
    if not found:
        return Extraction(None, "no phrase")
    answer = text[found[-1].end() :].partition("\n")[0].replace("**", "").strip()
    return Extraction(answer.removesuffix("."), "phrase")


def _bbh_lm_eval(text: str) -> Extraction:
    """lm-eval's bbh_cot_fewshot: behind the first phrase, without the line's last character."""
    found = re.search(r"(?<=the answer is )(.*)(?=.)", text)
    return Extraction(found[0].strip(), "phrase") if found else Extraction(None, "no phrase")


KINDS: dict[str, Callable[[str], Extraction]] = {
    "boxed": _boxed,  # the last \boxed{}
    "math": _math,  # box, phrase, last formula or number
    "minerva": _minerva,  # lm_eval
    "hendrycks_math": _hendrycks,  # lm_eval
    "gsm8k": _gsm8k,  # qwen
    "gsm8k_chat": _gsm8k_chat,  # qwen
    "gsm8k_strict": _gsm8k_strict,  # lm_eval
    "gsm8k_flexible": _gsm8k_flexible,  # lm_eval
    "math401": lambda text: _fixed_phrase(text, chinese=False),
    "math23k": lambda text: _fixed_phrase(text, chinese=True),
    "bbh": _bbh,
    "bbh_chat": _bbh_chat,  # ours
    "bbh_lm_eval": _bbh_lm_eval,
}
