"""OCNLI: does a Chinese sentence follow from another, zero-shot, dev set (report, Table 17).

The report has no prompts for it. Ours are the field's (OpenCompass's for this kind of task): the
likelihood of 蕴含 (follows), 无关 (neither) and 矛盾 (contradicts). Rows whose annotators did not
agree have the label "-"; they are dropped and counted. Hu et al. 2020; dev.json, a row per line.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows

ROWS, QUESTIONS = 3_000, 2_950
FILE = "ocnli/dev.json"
_WORDS = {"entailment": "蕴含", "neutral": "无关", "contradiction": "矛盾"}
_UNDECIDED = "-"


def read(data: DataFolders) -> Questions:
    found, dropped = [], 0
    for index, (where, row) in enumerate(rows.numbered(data, FILE, f"data/{FILE}")):
        if row.get("label") == _UNDECIDED:
            dropped += 1
            continue
        first, second = (rows.value(row, key, str, where) for key in ("sentence1", "sentence2"))
        label = tuple(_WORDS)[rows.position(row.get("label"), tuple(_WORDS), where)]
        fields = {"question": f"{first}\n{second}", "first": first, "second": second}
        found.append(Example(index, fields, label))
    check_count(len(found) + dropped, ROWS, "rows", FILE)
    check_count(len(found), QUESTIONS, "rows with a label", FILE)
    return Questions(tuple(found), dropped=dropped)


def template(example: Example, shots: Sequence[Example]) -> str:
    first, second = example.fields["first"], example.fields["second"]
    return f"语句一：“{first}”\n语句二：“{second}”\n请问这两句话是什么关系？\n"


OCNLI = Task(
    name="ocnli",
    protocol="qwen",
    read=read,
    template=template,
    files=(FILE,),
    counts=QUESTIONS,
    source="Table 17",
    choices=lambda example: tuple(_WORDS.values()),
    letters=tuple(_WORDS),
    published=published.TABLE_17["OCNLI"],
    checked=False,
)
TASKS = (OCNLI,)
