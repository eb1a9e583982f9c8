"""MATH on all 5,000 test problems, 4-shot, with the score of each subject and of each level.

The report scores Lightman's 500 (math.py); `math_full@lm_eval` is lm-eval's minerva_math. Hendrycks
et al., NeurIPS 2021; MATH.tar, a zip file of it, or its folder MATH.
"""

import dataclasses
import re
from collections.abc import Mapping

from qwen_jax.errors import DataError
from qwen_jax.evaluate.data_files import DataFolders, check_count, parse_json
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import math
from qwen_jax.grading.extract import extract

QUESTIONS = 5_000
ARCHIVES = ("MATH.tar", "MATH.zip", "MATH/test")
SUBJECTS = """algebra counting_and_probability geometry intermediate_algebra number_theory
prealgebra precalculus""".split()
LEVELS = tuple(f"level {level}" for level in "12345?")  # a few problems have no level
_FILE = re.compile(r"(?:(?:^|/)(train|test)/)?([^/]+)/(\d+)\.json$")


def read(data: DataFolders) -> Questions:
    """Reads test/SUBJECT/NUMBER.json, in the order of subjects and numbers."""
    found = {}
    for path, content in data.archive(*ARCHIVES).items():
        match = _FILE.search(path)
        if match is not None and match[1] != "train":
            found[match[2], int(match[3])] = _example(path, content, match[2], int(match[3]))
    check_count(len(found), QUESTIONS, "problems", ARCHIVES[0])
    return Questions(tuple(found[key] for key in sorted(found)), _same_for_all(data))


def _example(path: str, content: bytes, subject: str, number: int) -> Example:
    row = parse_json(content, path)
    if not isinstance(row, Mapping) or not all(
        isinstance(row.get(key), str) for key in ("problem", "level", "solution")
    ):
        raise DataError("no problem, level or solution.", path, "download the archive again.")
    answer, level = extract(row["solution"], "boxed").answer, row["level"].lower()
    if answer is None:
        raise DataError("the solution has no \\boxed{}.", path, "download the archive again.")
    if subject not in SUBJECTS or level not in LEVELS:
        raise DataError(
            f"the subject is {subject!r} and the level {row['level']!r}; subjects are "
            f"{', '.join(SUBJECTS)}, and levels 1 to 5 or ?.",
            path,
            "download the archive again.",
        )
    return Example(number, {**row, "question": row["problem"]}, answer, f"{subject} {level}")


def _same_for_all(data: DataFolders) -> dict[str, tuple[Example, ...]]:
    shots = math.worked(data)
    return {f"{subject} {level}": shots for subject in SUBJECTS for level in LEVELS}


def read_lm_eval(data: DataFolders) -> Questions:
    return math.lm_eval_shots(read(data))


MATH_FULL = dataclasses.replace(
    math.MATH,
    name="math_full",
    read=read,
    files=("MATH.tar", math.SHOTS),
    counts=QUESTIONS,
    groups={
        **{one: frozenset(f"{one} {level}" for level in LEVELS) for one in SUBJECTS},
        **{level: frozenset(f"{one} {level}" for one in SUBJECTS) for level in LEVELS},
    },
    published={},
    checked=False,
)
LM_EVAL = dataclasses.replace(
    MATH_FULL, protocol="lm_eval", read=read_lm_eval, generation=math.LM_EVAL_GENERATION
)
TASKS: tuple[Task, ...] = (MATH_FULL, LM_EVAL)
