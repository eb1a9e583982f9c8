"""`math_equal`: whether a mathematical answer is the gold answer. Report: 5, Table 12.

The lenient verdict accepts other forms of the same value (0.5 and 1/2, x = 5 and 5, -1 < x < 2 and
(-1, 2)); the strict one compares forms as PRM800K's grader does: an integer is written as an
integer, a fraction in the same terms, brackets and lengths are equal. Both are exact: a rounded
decimal is not its fraction, and values that merely agree numerically are not equal.

A percent sign says how a number is to be read: 10, 10% and 10\\% are the same answer, as in MATH's
own grader, and 10% and 0.1 are the same value, which the lenient verdict accepts. Degrees and other
units may be left out. A time with am or pm is equal to the same time of day (5:30 pm, 17:30), not
to 5:30. Repeating decimals are exact: 0.\\overline{3} is 1/3.
"""

import re

from qwen_jax.grading.symbolic import clock
from qwen_jax.grading.symbolic.compare import Comparison, Verdict
from qwen_jax.grading.symbolic.parse import parse
from qwen_jax.grading.symbolic.text import MAX_CHARACTERS, plain, words
from qwen_jax.grading.symbolic.tree import Node, Unreadable


def math_equal(prediction: str, gold: str, strict: bool = False) -> bool:
    """Returns whether `prediction` is the answer `gold`. Never raises, and takes bounded work.

    Args:
      prediction: an answer in LaTeX or plain text, not a whole solution (`extract_answer` finds the
        answer in one); boxes and dollar signs around it are taken off.
      gold: the reference answer.
      strict: compare forms, not only values.
    """
    return grade(prediction, gold, strict=strict).equal


def grade(prediction: str, gold: str, *, strict: bool = False) -> Verdict:
    """Returns the verdict of `math_equal` and the rule that decided.

    A rule that starts with `undecided` means that equality was neither proved nor refuted within
    the limits, or that it takes sympy (the extra `evaluate`), which is not installed.
    """
    if not isinstance(prediction, str) or not isinstance(gold, str):
        return Verdict(False, "no answer")
    prediction, gold = prediction.strip(), gold.strip()
    if not prediction or not gold:
        return Verdict(False, "no answer")
    if prediction == gold:
        return Verdict(True, "identical")
    if max(len(prediction), len(gold)) > MAX_CHARACTERS:
        return Verdict(False, f"longer than {MAX_CHARACTERS} characters")
    found, wanted = plain(prediction), plain(gold)
    if found and _close(found) == _close(wanted):
        return Verdict(True, "same text")
    time, gold_time = clock.read(prediction), clock.read(gold)
    if time is not None and gold_time is not None and (time.half or gold_time.half):
        return _same_time(time, gold_time, strict)
    trees = _parsed(found), _parsed(wanted)
    if trees[0] is None or trees[1] is None or "text" in (trees[0].kind, trees[1].kind):
        same = words(found) != "" and words(found) == words(wanted)
        return Verdict(same, "same words" if same else "not readable as mathematics")
    try:
        return Comparison(strict).compare(trees[1], trees[0])
    except Unreadable as limit:
        return Verdict(False, f"undecided: {limit}")


def readable(text: str) -> bool:
    """Whether the text is an answer by itself, not a sentence that contains one."""
    if len(text) > MAX_CHARACTERS:
        return False
    return clock.read(text) is not None or _parsed(plain(text)) is not None


def _same_time(found: clock.Time, wanted: clock.Time, strict: bool) -> Verdict:
    if found.seconds != wanted.seconds:
        return Verdict(False, "different times of day")
    if strict and found.half != wanted.half:
        return Verdict(False, "strict: times of day are compared as they are written")
    return Verdict(True, "the same time of day")


def _close(text: str) -> str:
    """Returns the text without spaces, but for those between digits: 1 1/2 is not 11/2."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", " ".join(text.split()))


def _parsed(text: str) -> Node | None:
    try:
        return parse(text)
    except Unreadable:
        return None
