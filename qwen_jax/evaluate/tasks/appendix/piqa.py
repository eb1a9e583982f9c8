"""PIQA: which of two ways reaches a goal, zero-shot, validation set (report, Table 17).

The report has no prompts for it. Ours are the field's (lm-eval's): the goal as a question, and the
solution with the highest likelihood per byte. Bisk et al. 2020; valid.jsonl and valid-labels.lst.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows

QUESTIONS = 1_838
FILE, LABELS = "piqa/valid.jsonl", "piqa/valid-labels.lst"


def read(data: DataFolders) -> Questions:
    found = list(rows.numbered(data, FILE))
    check_count(len(found), QUESTIONS, "questions", FILE)
    right = rows.labels(data, LABELS, ("0", "1"), len(found))
    return Questions(tuple(_example(i, *one, right[i]) for i, one in enumerate(found)))


def _example(index: int, where: str, row: dict, right: int) -> Example:
    solutions = [rows.value(row, key, str, where, blank=True) for key in ("sol1", "sol2")]
    goal = rows.value(row, "goal", str, where)
    return rows.choose(index, goal, solutions, right, where)


def template(example: Example, shots: Sequence[Example]) -> str:
    return f"Question: {example.fields['question']}\nAnswer:"


PIQA = Task(
    name="piqa",
    protocol="qwen",
    read=read,
    template=template,
    files=(FILE, LABELS),
    counts=QUESTIONS,
    source="Table 17",
    choices=rows.choices,
    letters="AB",
    per_byte=True,
    published=published.TABLE_17["PIQA"],
    checked=False,
)
TASKS = (PIQA,)
