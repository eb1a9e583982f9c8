"""Questions with known answers: arithmetic in English and Chinese, and Python's documentation.

They enable a first alignment run without downloads: conversations for fine-tuning (report 3.1),
preference pairs of a correct and a wrong answer (3.2.1), prompts with a verifiable reward (3.2.2).
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from qwen_jax.data.document import Document
from qwen_jax.utils.jsonl import write_rows

_PHRASINGS = {  # language -> (phrasings of a question, final punctuation of its answer)
    "en": (("What is {}?", "Compute {}.", "{} = ?"), "."),
    "zh": (("{} 等于多少？", "请计算 {}。", "{} = ？"), "。"),
}
# A function on a pydoc page: its signature, and the first sentence of its docstring.
_FUNCTION = re.compile(r"^([a-z]\w*)\([^\n]*\)\n    ([A-Z][^\n]{15,90}\.)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its answer and a plausible wrong answer."""

    text: str
    answer: str
    wrong: str
    group: str  # unit of the split: a sum's question, or a function's module


def sums(*, largest: int = 10, largest_factor: int = 5, seed: int = 0) -> list[Question]:
    """Returns arithmetic questions in random order.

    They are every a + b and a - b (a >= b) up to `largest`, and every a * b up to `largest_factor`,
    each in every phrasing. Every phrasing of a problem is a separate group: a held-out question
    poses a problem from the training set in another phrasing.
    """
    problems = [(a, "+", b, a + b) for a in range(largest + 1) for b in range(largest + 1)]
    problems += [(a, "-", b, a - b) for a in range(largest + 1) for b in range(a + 1)]
    problems += [
        (a, "*", b, a * b) for a in range(largest_factor + 1) for b in range(largest_factor + 1)
    ]
    rng = np.random.default_rng(seed)
    questions = []
    for a, operation, b, result in problems:
        problem = f"{a} {operation} {b}"
        for forms, end in _PHRASINGS.values():
            for form in forms:
                off = int(rng.choice([-10, -2, -1, 1, 2, 10]))
                wrong = result + off if result + off >= 0 else result - off
                questions.append(
                    Question(
                        form.format(problem),
                        f"{problem} = {result}{end}",
                        f"{problem} = {wrong}{end}",
                        form.format(problem),
                    )
                )
    return [questions[i] for i in rng.permutation(len(questions))]


def documented(pages: Iterable[Document], *, seed: int = 0) -> list[Question]:
    """Returns questions about what documented functions do, in random order.

    The answer is the first sentence of the function's docstring; the wrong answer is that of
    another function.

    Args:
      pages: pydoc pages as text.
    """
    found: dict[tuple[str, str], str] = {}
    for page in pages:
        module = page.text.split(maxsplit=1)[0]  # a page starts with its module's name
        for name, sentence in _FUNCTION.findall(page.text):
            if "help(type(self))" not in sentence:
                found.setdefault((module, name), sentence)
    rng = np.random.default_rng(seed)
    sentences = sorted(set(found.values()))
    questions = []
    for (module, name), sentence in found.items():
        if len(sentences) < 2:
            break
        index = int(rng.integers(len(sentences) - 1))
        wrong = sentences[index] if sentences[index] != sentence else sentences[-1]
        if wrong != sentence:
            questions.append(Question(f"What does {name} of {module} do?", sentence, wrong, module))
    return [questions[i] for i in rng.permutation(len(questions))]


def split(
    questions: Sequence[Question], fraction: float, *, seed: int = 0
) -> tuple[list[Question], list[Question]]:
    """Returns (training, held-out) questions; about `fraction` of the groups are held out."""
    groups = sorted({question.group for question in questions})
    number = round(fraction * len(groups))
    held_out = {groups[i] for i in np.random.default_rng(seed).permutation(len(groups))[:number]}
    return (
        [q for q in questions if q.group not in held_out],
        [q for q in questions if q.group in held_out],
    )


def write(questions: Sequence[Question], folder: str | os.PathLike) -> None:
    """Writes the questions to `folder` in three formats.

    The rows of conversations.jsonl have "messages"; those of pairs.jsonl "prompt", "chosen" and
    "rejected"; those of prompts.jsonl "prompt".
    """
    folder = pathlib.Path(folder)
    write_rows(
        folder / "conversations.jsonl",
        (
            {
                "messages": [
                    {"role": "user", "content": question.text},
                    {"role": "assistant", "content": question.answer},
                ]
            }
            for question in questions
        ),
    )
    write_rows(
        folder / "pairs.jsonl",
        (
            {"prompt": question.text, "chosen": question.answer, "rejected": question.wrong}
            for question in questions
        ),
    )
    write_rows(folder / "prompts.jsonl", ({"prompt": question.text} for question in questions))
