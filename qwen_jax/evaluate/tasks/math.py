"""MATH on Lightman's 500 problems, 4-shot, and Math401 and Math23K (report, Tables 2 and 12).

The examples of MATH are Minerva's; its answer is the last box or what the solution says it is. The
report does not publish its scripts for these three, so the prompts are the field's.
"""

from collections.abc import Sequence

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count, decode
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks import published
from qwen_jax.grading.extract import extract
from qwen_jax.grading.math import grade
from qwen_jax.grading.numbers import math23k_equal, math401_equal
from qwen_jax.utils import json_text


def _examples(rows: Sequence[dict], question: str, answer: str, file: str, count: int):
    found = []
    for index, row in enumerate(rows):
        if question not in row or answer not in row:
            raise DataError(
                f"no {question} or {answer}.", f"{file} row {index + 1}", "download it again."
            )
        found.append(Example(index, {**row, "question": row[question]}, str(row[answer])))
    check_count(len(found), count, "questions", file)
    return tuple(found)


def read_math(data: DataFolders) -> Questions:
    file = "math500_test.jsonl"
    rows = data.json_lines(file, "math_splits/test.jsonl")
    shots = data.json("minerva_math_4shot.json")
    worked = tuple(
        Example(i, {"question": one["problem"], "solution": one["solution"]}, "")
        for i, one in enumerate(shots)
    )
    return Questions(_examples(rows, "problem", "answer", file, 500), {"": worked})


def math_template(example: Example, shots: Sequence[Example]) -> str:
    def block(one: Example) -> str:
        return f"Problem:\n{one.fields['question']}\n\nSolution:"

    worked = "".join(f"{block(one)} {one.fields['solution']}\n\n" for one in shots)
    return worked + block(example)


def grade_math(text: str, example: Example) -> Verdict:
    found = extract(text, "math")
    if found.answer is None:
        return Verdict(False, *found)
    verdict = grade(found.answer, example.answer)
    return Verdict(verdict.equal, found.answer, f"{found.rule}; {verdict.rule}")


def read_math401(data: DataFolders) -> Questions:
    rows = data.json_lines("math401.jsonl", "math401.json")
    return Questions(_examples(rows, "query", "response", "math401.jsonl", 401))


def grade_math401(text: str, example: Example) -> Verdict:
    found = extract(text, "math401")
    return Verdict(math401_equal(found.answer, example.answer), *found)


def read_math23k(data: DataFolders) -> Questions:
    """Reads the distribution's file: JSON objects one after the other."""
    name, content = data.read("math23k_test.json")
    rows, text, at = [], decode(content, name), 0
    for end in _ends(text):
        rows.append(json_text.parse(text[at:end].encode(), finite=False))
        at = end
    return Questions(_examples(rows, "original_text", "ans", name, 1000))


def _ends(text: str):
    """Yields the end of each object: a closing brace at the beginning of a line."""
    at = 0
    while (at := text.find("\n}", at)) >= 0:
        at += 2
        yield at


def grade_math23k(text: str, example: Example) -> Verdict:
    found = extract(text, "math23k")
    return Verdict(math23k_equal(found.answer, example.answer), *found)


MATH = Task(
    name="math",
    protocol="qwen",
    read=read_math,
    template=math_template,
    files=("math500_test.jsonl", "minerva_math_4shot.json"),
    counts=500,
    source="Table 2",
    num_shots=4,
    generation=Generation(("Problem:",), 1024, grade_math, gold=lambda e: e.fields["solution"]),
    published=published.TABLE_2["MATH"],
)
MATH401 = Task(
    name="math401",
    protocol="qwen",
    read=read_math401,
    template=lambda example, shots: example.fields["question"],
    files=("math401.jsonl",),
    counts=401,
    source="Table 12",
    generation=Generation((), 256, grade_math401, gold=lambda e: f"The answer is {e.answer}"),
    chat=True,
    published=published.TABLE_12["Math401"],
)
MATH23K = Task(
    name="math23k",
    protocol="qwen",
    read=read_math23k,
    template=lambda example, shots: example.fields["question"],
    files=("math23k_test.json",),
    counts=1000,
    source="Table 12",
    generation=Generation((), 512, grade_math23k, gold=lambda e: f"答案是{e.answer}"),
    chat=True,
    published=published.TABLE_12["Math23K"],
)
TASKS = (MATH, MATH401, MATH23K)
