"""MMLU and C-Eval for chat models: the question in the user's turn, the letter from the response.

Report 3.3, Table 5. The released scripts never abstain: without a letter, they take the choice
whose text is most similar to the response. The tasks NAME_strict abstain instead.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks import ceval, lettered, mmlu, published
from qwen_jax.grading.extract import extract

_INSTRUCTION = (
    "The following is a multiple-choice question. Please choose the most suitable one among A, B, "
    "C and D as the answer to this question.\n\n"
)
_MAX_NEW_TOKENS = 512


def mmlu_template(example: Example, shots: Sequence[Example]) -> str:
    return f"{_INSTRUCTION}{example.fields['question']}\n{lettered.lines(example)}"


def ceval_template(example: Example, shots: Sequence[Example]) -> str:
    return f"{example.fields['question']}\n\n{lettered.lines(example)}"


def grade(kind: str):
    """Returns a grader with a cascade of grading/choices.py."""

    def grade_letter(text: str, example: Example) -> Verdict:
        found = extract(text, kind, options=example.fields)
        return Verdict(found.answer == example.answer, *found)

    return grade_letter


def _task(base: Task, template, strict: bool) -> Task:
    kind = f"{base.name}_chat" + "_strict" * strict
    column = {"mmlu": "MMLU 0", "ceval": "C-Eval 0"}[base.name]
    return Task(
        name=kind,
        protocol="qwen",
        read=lambda data: Questions(base.read(data).examples),
        template=template,
        files=base.files,
        counts=base.counts,
        source="Table 5",
        generation=Generation((), _MAX_NEW_TOKENS, grade(kind)),
        macro=base.macro,
        groups=base.groups,
        chat=True,
        published=published.TABLE_5[column],
    )


TASKS = tuple(
    _task(base, template, strict)
    for base, template in ((mmlu.MMLU, mmlu_template), (ceval.CEVAL, ceval_template))
    for strict in (False, True)
)
