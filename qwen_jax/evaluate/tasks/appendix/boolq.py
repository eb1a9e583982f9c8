"""BoolQ: yes or no, from a passage, zero-shot (report, Table 16).

The report has no prompts for it. Ours are the field's (lm-eval's): passage, question, and the
likelihood of " no" and " yes". Clark et al. 2019; dev.jsonl.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows

QUESTIONS = 3_270
FILE = "boolq/dev.jsonl"
_ANSWERS = ("no", "yes")


def read(data: DataFolders) -> Questions:
    found = []
    for index, (where, row) in enumerate(rows.numbered(data, FILE)):
        fields = {key: rows.value(row, key, str, where) for key in ("question", "passage")}
        found.append(Example(index, fields, _ANSWERS[rows.value(row, "answer", bool, where)]))
    check_count(len(found), QUESTIONS, "questions", FILE)
    return Questions(tuple(found))


def template(example: Example, shots: Sequence[Example]) -> str:
    return f"{example.fields['passage']}\nQuestion: {example.fields['question']}?\nAnswer:"


BOOLQ = Task(
    name="boolq",
    protocol="qwen",
    read=read,
    template=template,
    files=(FILE,),
    counts=QUESTIONS,
    source="Table 16",
    choices=lambda example: tuple(f" {one}" for one in _ANSWERS),
    letters=_ANSWERS,
    published=published.TABLE_16["BoolQ"],
    checked=False,
)
TASKS = (BOOLQ,)
