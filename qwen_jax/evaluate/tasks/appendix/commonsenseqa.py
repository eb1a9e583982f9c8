"""CommonsenseQA: five choices, 8-shot (report, Table 16).

The report says eight examples, not which: ours are the first eight of the training file. The prompt
is the field's (lm-eval's), with lettered lines, and the likelihood of " A" to " E" decides. Talmor
et al. 2019; dev_rand_split.jsonl and train_rand_split.jsonl.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows

QUESTIONS, TRAINING, SHOTS = 1_221, 9_741, 8
FILE, SHOTS_FILE = "commonsenseqa/dev_rand_split.jsonl", "commonsenseqa/train_rand_split.jsonl"


def _examples(data: DataFolders, file: str, count: int) -> tuple[Example, ...]:
    found = []
    for index, (where, row) in enumerate(rows.numbered(data, file, file.partition("/")[2])):
        question = rows.value(row, "question", dict, where)
        listed = rows.value(question, "choices", list, where)
        labels = [one.get("label") if isinstance(one, dict) else None for one in listed]
        if labels != list(rows.LETTERS):
            raise rows.malformed(f"the choices are {labels}, not A to E", where)
        texts = [rows.value(one, "text", str, where, blank=True) for one in listed]
        right = rows.position(row.get("answerKey"), labels, where)
        stem = rows.value(question, "stem", str, where)
        found.append(rows.choose(index, stem, texts, right, where))
    check_count(len(found), count, "questions", file)
    return tuple(found)


def read(data: DataFolders) -> Questions:
    shots = _examples(data, SHOTS_FILE, TRAINING)[:SHOTS]
    return Questions(_examples(data, FILE, QUESTIONS), {"": shots})


def template(example: Example, shots: Sequence[Example]) -> str:
    def block(one: Example) -> str:
        lines = "".join(f"{letter}. {one.fields[letter]}\n" for letter in rows.LETTERS)
        return f"Question: {one.fields['question'].strip()}\n{lines}Answer:"

    return "".join(f"{block(one)} {one.answer}\n\n" for one in shots) + block(example)


COMMONSENSEQA = Task(
    name="commonsenseqa",
    protocol="qwen",
    read=read,
    template=template,
    files=(FILE, SHOTS_FILE),
    counts=QUESTIONS,
    source="Table 16",
    num_shots=SHOTS,
    choices=lambda example: tuple(f" {letter}" for letter in rows.LETTERS),
    letters=rows.LETTERS,
    published=published.TABLE_16["CSQA"],
    checked=False,
)
TASKS = (COMMONSENSEQA,)
