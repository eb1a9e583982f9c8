"""Augments math data: solutions that a checker confirms, paraphrases, arithmetic. Report: 5.1.

The report says only that its math data were augmented. This is what the literature does: rejection
sampling (Yuan et al. 2023), questions rephrased by a model (Yu et al. 2023), and generated
arithmetic with its steps.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from qwen_jax.data.chat.conversations import Turn
from qwen_jax.errors import DataError
from qwen_jax.grading import arithmetic
from qwen_jax.grading.extract import extract_answer
from qwen_jax.grading.math import math_equal
from qwen_jax.synthetic.novelty import words
from qwen_jax.synthetic.response_cache import Response, ResponseCache
from qwen_jax.synthetic.worlds import sums
from qwen_jax.synthetic.worlds.problem import sample
from qwen_jax.utils.jsonl import read_rows

_QUESTIONS = ("question", "problem", "query", "instruction")
_REPHRASE = {
    "en": "Rephrase this problem in other words. Keep every number, and what is asked. Write only "
    "the new problem.\n\n{}",
    "zh": "请换一种说法改写下面的题目，保留所有数字和问题的含义，只写出新题目。\n\n{}",
}
_SOLVE = {
    "en": "{}\n\nReason step by step, and write the final answer in \\boxed{{}}.",
    "zh": "{}\n\n请一步一步推理，并把最终答案写在\\boxed{{}}中。",
}
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TERM = r"[\d.]+%?|[-+*/^()×÷]|\s"
_RESULT = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_EQUATION = re.compile(rf"(?<![\w.])((?:{_TERM})+?)=\s*\$?({_RESULT})(?![\d%]|\.\d)")


@dataclasses.dataclass(frozen=True)
class MathProblem:
    """A question and its final answer; of a paraphrase, also the question that it rephrases."""

    question: str
    answer: str
    original: str | None = None

    @property
    def language(self) -> str:
        return "zh" if _CHINESE.search(self.question) else "en"


def read_problems(path: str | os.PathLike) -> list[MathProblem]:
    """Reads problems: rows with a question, and an answer or a solution that ends with it.

    GSM8K's `#### 42` and MATH's `\\boxed{42}` are understood.

    Raises:
      DataError: a row has no question, or no final answer can be found in it.
    """
    found = []
    for where, row in read_rows(path):
        question = next((row[name] for name in _QUESTIONS if isinstance(row.get(name), str)), None)
        given = row.get("answer", row.get("solution", row.get("response")))
        answer = _final(str(given)) if given is not None else None
        if question is None or answer is None:
            raise DataError(
                f"the row has no {'question' if question is None else 'final answer'}.",
                where,
                "pass rows with question (or problem) and answer (or solution).",
            )
        found.append(MathProblem(question, answer))
    return found


def _final(text: str) -> str | None:
    if "####" in text:
        return text.rsplit("####", 1)[1].strip().replace(",", "") or None
    if "\n" not in text and "\\boxed" not in text and len(text) < 40:
        return text.strip() or None
    return extract_answer(text, kind="math")


def rephrase(
    cache: ResponseCache, problems: Sequence[MathProblem], per_problem: int, counts: Counter[str]
) -> list[MathProblem]:
    """Returns paraphrases of the problems that keep their numbers, without repetitions.

    Whether a paraphrase still has the same answer is decided by `solve`: it is kept only with a
    solution that reaches the answer of the original.
    """
    asked = [problem for problem in problems for _ in range(per_problem)]
    responses = cache(
        0, "rephrase", [_turn(_REPHRASE[p.language].format(p.question)) for p in asked]
    )
    found, seen = [], {" ".join(words(problem.question)) for problem in problems}
    for problem, response in zip(asked, responses, strict=True):
        text = response.text.strip()
        fault = _paraphrase_fault(problem, response, seen)
        counts[fault or "paraphrases"] += 1
        if fault is None:
            seen.add(" ".join(words(text)))
            found.append(MathProblem(text, problem.answer, original=problem.question))
    return found


def _paraphrase_fault(problem: MathProblem, response: Response, seen: set[str]) -> str | None:
    if response.finish != "stop" or not response.text.strip():
        return "paraphrase: not finished"
    if Counter(_NUMBER.findall(response.text)) != Counter(_NUMBER.findall(problem.question)):
        return "paraphrase: other numbers"
    return "paraphrase: not new" if " ".join(words(response.text)) in seen else None


def solve(
    cache: ResponseCache,
    problems: Sequence[MathProblem],
    per_problem: int,
    counts: Counter[str],
    *,
    name: str = "solve",
) -> list[dict[str, Any]]:
    """Rejection sampling: returns conversations with the right and different solutions.

    A solution is right if its answer equals the problem's and every equation in it is true. Two
    solutions differ if their equations do, whatever their words (Yuan et al. 2023).

    Args:
      per_problem: solutions to sample.
      counts: receives the number of kept solutions, and of rejected ones by reason.
      name: of the stage in the cache.
    """
    asked = [index for index in range(len(problems)) for _ in range(per_problem)]
    responses = cache(
        0, name, [_turn(_SOLVE[problems[i].language].format(problems[i].question)) for i in asked]
    )
    rows, seen = [], set()
    for index, response in zip(asked, responses, strict=True):
        problem, text = problems[index], response.text.strip()
        path = (index, solution_path(text))
        fault = solution_fault(problem, response)
        if fault is None and path in seen:
            fault = "solution: the same steps"
        counts[fault or f"{name}: kept"] += 1
        if fault is None:
            seen.add(path)
            rows.append(conversation(problem.question, text))
    return rows


def solution_fault(problem: MathProblem, response: Response) -> str | None:
    """Returns why a solution is not right, or None."""
    if response.finish != "stop":
        return "solution: not finished"
    answer = extract_answer(response.text, kind="math")
    if answer is None or not math_equal(answer, problem.answer):
        return "solution: wrong answer"
    if any(not _is_true(*equation) for equation in equations(response.text)):
        return "solution: wrong equation"
    return None


def equations(text: str) -> list[tuple[str, str]]:
    """Returns (expression, number) of each calculation in a text, such as ("3 * 4", "12")."""
    pairs = [(left.strip(), right) for left, right in _EQUATION.findall(text)]
    return [(left, right) for left, right in pairs if re.search(r"\d\s*[-+*/^×÷]\s*[\d(]", left)]


def _is_true(left: str, right: str) -> bool:
    """Returns whether a calculation is right; a result with decimals may be rounded."""
    value = arithmetic.value(left)
    if value is None:
        return True  # not a calculation that we can read; the answer decides
    error = abs(value - Fraction(right.replace(",", "")))
    places = len(right.partition(".")[2])
    return error <= (Fraction(1, 2 * 10**places) if places else 0)


def solution_path(text: str) -> str:
    """Returns what makes a solution different from others: its equations, or else its words."""
    found = equations(text)
    if found:
        return ";".join(f"{''.join(left.split())}={right}" for left, right in found)
    return " ".join(words(text))


def arithmetic_rows(number: int, *, seed: int) -> Iterator[dict[str, Any]]:
    """Yields generated arithmetic with its steps, as Math401 has it, in English and Chinese."""
    for problem in sample(sums.make, sums.LEVELS, number, seed=seed, held_out=False):
        yield conversation(problem.question, problem.steps)


def conversation(question: str, solution: str) -> dict[str, Any]:
    """Returns a row of a chat file."""
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": solution},
        ]
    }


def _turn(text: str) -> list[Turn]:
    return [("user", text)]
