"""LAMBADA: the last word of a passage, zero-shot (report, Table 16).

The word is generated greedily from everything before it, and the completion's first word has to be
the same, without punctuation around it. Paperno et al. 2016; lambada_test.jsonl, the text that
GPT-2 was evaluated on, or else the authors' tokenized lambada_test_plain_text.txt.
"""

import string
from collections.abc import Iterator, Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows

PASSAGES = 5_153
FILE, PLAIN = "lambada_test.jsonl", "lambada_test_plain_text.txt"
_AROUND = string.punctuation + "“”‘’…—"


def read(data: DataFolders) -> Questions:
    name, _ = data.read(FILE, PLAIN)
    found = []
    for index, (where, text) in enumerate(_passages(data, name)):
        before, _, word = text.rstrip().rpartition(" ")
        if not before.strip():
            raise rows.malformed("the passage is a single word", where)
        found.append(Example(index, {"text": text, "before": before}, word))
    check_count(len(found), PASSAGES, "passages", name)
    return Questions(tuple(found))


def _passages(data: DataFolders, name: str) -> Iterator[tuple[str, str]]:
    if name == FILE:
        for where, row in rows.numbered(data, FILE):
            yield where, rows.value(row, "text", str, where)
    else:
        for number, line in enumerate(data.text(PLAIN).rstrip("\n").split("\n"), 1):
            yield f"{PLAIN} row {number}", line


def template(example: Example, shots: Sequence[Example]) -> str:
    return example.fields["before"]


def grade(text: str, example: Example) -> Verdict:
    words = [word for one in text.split() if (word := one.strip(_AROUND))]
    found = words[0] if words else None
    return Verdict(found == example.answer.strip(_AROUND), found, "first word")


LAMBADA = Task(
    name="lambada",
    protocol="qwen",
    read=read,
    template=template,
    files=(FILE,),
    counts=PASSAGES,
    source="Table 16",
    generation=Generation(("\n",), 16, grade, gold=lambda example: f" {example.answer}"),
    published=published.TABLE_16["LAMBADA"],
    checked=False,
)
TASKS = (LAMBADA,)
