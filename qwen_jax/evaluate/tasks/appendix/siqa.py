"""Social IQa: three choices about what people feel and do, zero-shot (report, Table 17).

The report has no prompts for it. Ours are the field's (lm-eval's social_iqa): the likelihood of
each answer's text. Scores of models that see lettered choices are higher. Sap et al. 2019;
dev.jsonl and dev-labels.lst.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows

QUESTIONS = 1_954
FILE, LABELS = "socialiqa-train-dev/dev.jsonl", "socialiqa-train-dev/dev-labels.lst"
_ANSWERS = ("answerA", "answerB", "answerC")


def read(data: DataFolders) -> Questions:
    found = list(rows.numbered(data, FILE))
    check_count(len(found), QUESTIONS, "questions", FILE)
    right = rows.labels(data, LABELS, ("1", "2", "3"), len(found))
    return Questions(tuple(_example(i, *one, right[i]) for i, one in enumerate(found)))


def _example(index: int, where: str, row: dict, right: int) -> Example:
    context, question = (rows.value(row, key, str, where) for key in ("context", "question"))
    answers = [rows.value(row, key, str, where, blank=True) for key in _ANSWERS]
    return rows.choose(index, f"{context} {question}", answers, right, where)


def template(example: Example, shots: Sequence[Example]) -> str:
    return f"Q: {example.fields['question']}\nA:"


SIQA = Task(
    name="siqa",
    protocol="qwen",
    read=read,
    template=template,
    files=(FILE, LABELS),
    counts=QUESTIONS,
    source="Table 17",
    choices=rows.choices,
    letters="ABC",
    published=published.TABLE_17["SIQA"],
    checked=False,
)
TASKS = (SIQA,)
