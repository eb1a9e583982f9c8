"""MMLU and C-Eval for chat models: the question in the user's turn, the letter from the response.

Report 3.3, Table 5. `mmlu_chat_few_shot` and `ceval_chat_few_shot` show five worked examples as
earlier turns, whose responses are letters; their script is not published. The released scripts
never abstain: without a letter, they take the choice whose text is most similar to the response.
The tasks NAME_strict abstain instead.
"""

import functools
from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders
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


def _read_questions(base: Task, data: DataFolders) -> Questions:
    return Questions(base.read(data).examples)


def _task(base: Task, template, *, strict: bool = False, num_shots: int = 0) -> Task:
    kind = f"{base.name}_chat" + "_strict" * strict
    column = {"mmlu": "MMLU", "ceval": "C-Eval"}[base.name]
    return Task(
        name=kind + "_few_shot" * bool(num_shots),
        protocol="qwen",
        read=base.read if num_shots else functools.partial(_read_questions, base),
        template=template,
        files=base.files,
        counts=base.counts,
        source="Table 5",
        generation=Generation((), _MAX_NEW_TOKENS, grade(kind)),
        macro=base.macro,
        groups=base.groups,
        chat=True,
        num_shots=num_shots,
        response=(lambda example: example.answer) if num_shots else None,
        published=published.TABLE_5[f"{column} {num_shots}"],
        checked=not num_shots,
    )


TASKS = tuple(
    _task(base, template, strict=strict, num_shots=num_shots)
    for base, template in ((mmlu.MMLU, mmlu_template), (ceval.CEVAL, ceval_template))
    for strict, num_shots in ((False, 0), (True, 0), (False, 5))
)
