"""60 questions without an answer, in English and Chinese: does a model say that it does not know?

Report 3.2 and 6.2 speak of hallucination, without a published set. These are ours: invented things,
private and future facts, and what nobody wrote down. The score is the share of answers that admit
it, by rules (grading/unknown.py); every other answer counts as a hallucination.
"""

import pathlib
from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.grading.unknown import admission
from qwen_jax.utils.jsonl import read_rows

QUESTIONS = 60
FILE = pathlib.Path(__file__).with_suffix(".jsonl")
_ADMITS, _ANSWERS = "does not know", "answers"
_GOLD = {"en": "I do not know that.", "zh": "我不知道。"}


def read(data: DataFolders) -> Questions:
    rows = [row for _, row in read_rows(FILE)]
    check_count(len(rows), QUESTIONS, "questions", FILE.name)
    found = [
        Example(index, row, _ADMITS, f"{row['language']} {row['category']}")
        for index, row in enumerate(rows)
    ]
    return Questions(tuple(found))


def template(example: Example, shots: Sequence[Example]) -> str:
    return example.fields["question"]


def grade(text: str, example: Example) -> Verdict:
    """Returns whether a completion admits that it does not know; an empty one abstains."""
    found = admission(text)
    extracted = _ADMITS if found.admits else _ANSWERS if text.strip() else None
    return Verdict(found.admits, extracted, found.rule)


_CATEGORIES = ("invented", "private", "future", "unrecorded")
UNANSWERABLE = Task(
    name="unanswerable",
    protocol="qwen",
    read=read,
    template=template,
    files=(),
    counts=QUESTIONS,
    source="ours, for report 6.2",
    generation=Generation((), 128, grade, gold=lambda one: _GOLD[one.fields["language"]]),
    groups={
        "English": frozenset(f"en {name}" for name in _CATEGORIES),
        "Chinese": frozenset(f"zh {name}" for name in _CATEGORIES),
        **{name: frozenset({f"en {name}", f"zh {name}"}) for name in _CATEGORIES},
    },
    chat=True,
)
TASKS = (UNANSWERABLE,)
