"""MBPP: 500 Python functions from a sentence and three asserts (report, Tables 2 and 10).

Table 2's header says 3-shot, the text zero-shot: `mbpp` shows problems 2, 3 and 4, `mbpp_zero_shot`
none. Programs run in the sandbox, with the published asserts. `mbpp@lm_eval` shows and runs the
first three asserts, without setup code. Austin et al. 2021; mbpp.jsonl.
"""

import dataclasses
from collections.abc import Sequence

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import (
    LM_EVAL_MAX_NEW_TOKENS,
    Example,
    Generation,
    Questions,
    Task,
    Verdict,
)
from qwen_jax.evaluate.tasks.code import published
from qwen_jax.evaluate.tasks.humaneval import ran
from qwen_jax.grading import code, programs

QUESTIONS, FILE = 500, "mbpp.jsonl"
LM_EVAL_TESTS = 3
_SHOTS, _FIRST, _LAST = (2, 3, 4), 11, 510  # task_id


def read(data: DataFolders) -> Questions:
    rows = {}
    for number, row in enumerate(data.json_lines(FILE), 1):
        missing = {"task_id", "text", "code", "test_list"} - row.keys()
        if missing:
            raise DataError(
                f"no {', '.join(sorted(missing))}.", f"{FILE} line {number}", "download it."
            )
        rows[row["task_id"]] = Example(row["task_id"], row, row["code"])
    check_count(len(rows), 974, "problems", FILE)
    test = [rows[number] for number in range(_FIRST, _LAST + 1)]
    return Questions(tuple(test), {"": tuple(rows[number] for number in _SHOTS)})


def template(example: Example, shots: Sequence[Example]) -> str:
    return _template(example, shots, None)


def lm_eval_template(example: Example, shots: Sequence[Example]) -> str:
    return _template(example, shots, LM_EVAL_TESTS)


def _template(example: Example, shots: Sequence[Example], tests: int | None) -> str:
    """Returns the prompt with the first `tests` asserts of each problem; None: all."""

    def block(one: Example) -> str:
        shown = "\n".join(one.fields["test_list"][:tests])
        return (
            "You are an expert Python programmer, and here is your task: "
            f"{one.fields['text']} Your code should pass these tests:\n\n{shown}\n[BEGIN]\n"
        )

    return "".join(f"{block(one)}{one.fields['code']}\n[DONE]\n\n" for one in shots) + block(
        example
    )


def grade(text: str, example: Example, *, unsafe: bool = False) -> Verdict:
    """Runs the code with its asserts."""
    return ran(*programs.mbpp_program(example.fields, text), extracted=text, unsafe=unsafe)


def grade_lm_eval(text: str, example: Example, *, unsafe: bool = False) -> Verdict:
    """Runs the code with the asserts that the prompt shows."""
    tests = "\n".join(example.fields["test_list"][:LM_EVAL_TESTS])
    return ran(text, tests, extracted=text, unsafe=unsafe)


def gold(example: Example) -> str:
    return example.fields["code"] + "\n[DONE]"


def _task(name: str, num_shots: int) -> Task:
    return Task(
        name=name,
        protocol="qwen",
        read=read,
        template=template,
        files=(FILE,),
        counts=QUESTIONS,
        source="Table 2",
        num_shots=num_shots,
        generation=Generation(code.MBPP_MORE_STOPS, 512, grade, sandboxed=True, gold=gold),
        published=published.MBPP,
    )


MBPP = _task("mbpp", 3)
LM_EVAL = dataclasses.replace(
    MBPP,
    protocol="lm_eval",
    template=lm_eval_template,
    generation=Generation(
        code.MBPP_STOPS, LM_EVAL_MAX_NEW_TOKENS, grade_lm_eval, sandboxed=True, gold=gold
    ),
)
TASKS = (MBPP, _task("mbpp_zero_shot", 0), LM_EVAL)
