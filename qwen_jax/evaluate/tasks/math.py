"""MATH on Lightman's 500 problems, 4-shot, and Math401 and Math23K (report, Tables 2 and 12).

The examples of MATH are Minerva's; its answer is the last box or what the solution says it is. The
report does not publish its scripts for these three, so the prompts are the field's. In
`math@lm_eval` (minerva_math500) an answer must be in Minerva's sentence, and is compared after
Minerva's normalization; score_anywhere has the verdict of `math`.
"""

import dataclasses
import re
from collections.abc import Sequence

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count, decode
from qwen_jax.evaluate.task import (
    LM_EVAL_MAX_NEW_TOKENS,
    Example,
    Generation,
    Questions,
    Task,
    Verdict,
)
from qwen_jax.evaluate.tasks import published
from qwen_jax.grading import minerva
from qwen_jax.grading.extract import extract
from qwen_jax.grading.math import grade
from qwen_jax.grading.numbers import math23k_equal, math401_equal
from qwen_jax.utils import json_text

SHOTS = "minerva_math_4shot.json"


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
    return Questions(_examples(rows, "problem", "answer", file, 500), {"": worked(data)})


def worked(data: DataFolders) -> tuple[Example, ...]:
    """Returns Minerva's four examples."""
    return tuple(
        Example(i, {"question": one["problem"], "solution": one["solution"]}, "")
        for i, one in enumerate(data.json(SHOTS))
    )


def read_lm_eval(data: DataFolders) -> Questions:
    return lm_eval_shots(read_math(data))


def lm_eval_shots(questions: Questions) -> Questions:
    """Returns the same questions, with the LaTeX of the worked examples corrected as in lm-eval."""
    shots = {
        subject: tuple(
            dataclasses.replace(
                one, fields={key: _corrected(text) for key, text in one.fields.items()}
            )
            for one in examples
        )
        for subject, examples in questions.shots.items()
    }
    return dataclasses.replace(questions, shots=shots)


def _corrected(text: str) -> str:
    """Line breaks get their second backslash back, and a brace that nothing opens is removed."""
    text = re.sub(r"(?<!\\)\\\n", r"\\\\\n", text)
    return text[:-1] if text.endswith("}") and text.count("}") > text.count("{") else text


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


def grade_lm_eval(text: str, example: Example) -> Verdict:
    found, also = extract(text, "minerva"), {"anywhere": grade_math(text, example).correct}
    if found.answer is None:
        return Verdict(False, *found, also)
    answer = minerva.normalize(found.answer)
    verdict = grade(answer, minerva.normalize(example.answer))
    return Verdict(verdict.equal, answer, f"{found.rule}; {verdict.rule}", also)


def minerva_gold(example: Example) -> str:
    """Returns the solution, and the sentence with which Minerva's examples end."""
    end = f"Final Answer: The final answer is ${example.answer}$. I hope it is correct."
    return f"{example.fields['solution']}\n{end}"


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


LM_EVAL_GENERATION = Generation(
    ("Problem:",), LM_EVAL_MAX_NEW_TOKENS, grade_lm_eval, symbolic=True, gold=minerva_gold
)
MATH = Task(
    name="math",
    protocol="qwen",
    read=read_math,
    template=math_template,
    files=("math500_test.jsonl", SHOTS),
    counts=500,
    source="Table 2",
    num_shots=4,
    generation=Generation(
        ("Problem:",), 1024, grade_math, symbolic=True, gold=lambda e: e.fields["solution"]
    ),
    published=published.TABLE_2["MATH"],
)
LM_EVAL = dataclasses.replace(
    MATH, protocol="lm_eval", read=read_lm_eval, generation=LM_EVAL_GENERATION
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
TASKS = (MATH, LM_EVAL, MATH401, MATH23K)
