"""HellaSwag: which of four endings follows, zero-shot, validation set (report, Table 17).

The report has no prompts for it. Ours are the field's (lm-eval's): the activity and the context,
and the ending with the highest likelihood per byte. Zellers et al. 2019; hellaswag_val.jsonl.
"""

import re
from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows

QUESTIONS = 10_042
FILE = "hellaswag_val.jsonl"
_ENDINGS = 4


def read(data: DataFolders) -> Questions:
    found = []
    for index, (where, row) in enumerate(rows.numbered(data, FILE, f"data/{FILE}")):
        activity, before = (rows.value(row, key, str, where) for key in ("activity_label", "ctx_a"))
        # The beginning of the ending, in rows of one of the two sources.
        begun = rows.value(row, "ctx_b", str, where, blank=True)
        endings = rows.texts(row, "endings", where)
        if len(endings) != _ENDINGS:
            raise rows.malformed(f"it has {len(endings)} endings, not {_ENDINGS}", where)
        right = rows.position(row.get("label"), range(_ENDINGS), where)
        question = clean(f"{activity}: {before} {begun.capitalize()}")
        found.append(rows.choose(index, question, [clean(one) for one in endings], right, where))
    check_count(len(found), QUESTIONS, "questions", FILE)
    return Questions(tuple(found))


def clean(text: str) -> str:
    """Removes the marks of WikiHow pages, such as [header] and [title]."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def template(example: Example, shots: Sequence[Example]) -> str:
    return example.fields["question"]


HELLASWAG = Task(
    name="hellaswag",
    protocol="qwen",
    read=read,
    template=template,
    files=(FILE,),
    counts=QUESTIONS,
    source="Table 17",
    choices=rows.choices,
    per_byte=True,
    published=published.TABLE_17["HellaSwag"],
    checked=False,
)
TASKS = (HELLASWAG,)
