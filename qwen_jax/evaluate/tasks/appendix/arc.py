"""ARC, easy and challenge: science questions for children, zero-shot (report, Table 15).

The report has no prompts for these. Ours are the field's (lm-eval's arc_easy and arc_challenge):
the text of each choice is compared, by its sum for the easy set and per byte for the other. Scores
of models that see lettered choices are higher. Clark et al. 2018; the test files of ARC-V1.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows

QUESTIONS = {"Easy": 2_376, "Challenge": 1_172}


def files(part: str) -> tuple[str, ...]:
    """Returns names of a part's file: in the unpacked distribution, or in a folder "arc"."""
    name = f"ARC-{part}-Test.jsonl"
    return f"arc/{name}", f"ARC-{part}/{name}", f"ARC-V1-Feb2018-2/ARC-{part}/{name}"


def read(data: DataFolders, part: str) -> Questions:
    found = []
    for index, (where, row) in enumerate(rows.numbered(data, *files(part))):
        question = rows.value(row, "question", dict, where)
        listed = rows.value(question, "choices", list, where)
        if not all(isinstance(one, dict) for one in listed):
            raise rows.malformed("a choice has no label and text", where)
        labels = [rows.value(one, "label", str, where) for one in listed]  # A to E, or 1 to 5
        texts = [rows.value(one, "text", str, where, blank=True) for one in listed]
        right = rows.position(row.get("answerKey"), labels, where)
        stem = rows.value(question, "stem", str, where)
        found.append(rows.choose(index, stem, texts, right, where))
    check_count(len(found), QUESTIONS[part], "questions", files(part)[0])
    return Questions(tuple(found))


def template(example: Example, shots: Sequence[Example]) -> str:
    return f"Question: {example.fields['question']}\nAnswer:"


def _task(part: str, *, per_byte: bool) -> Task:
    return Task(
        name=f"arc_{part.lower()}",
        protocol="qwen",
        read=lambda data: read(data, part),
        template=template,
        files=files(part)[:1],
        counts=QUESTIONS[part],
        source="Table 15",
        choices=rows.choices,
        letters=rows.LETTERS,
        per_byte=per_byte,
        published=published.TABLE_15[f"ARC-{part[0].lower()}"],
        checked=False,
    )


TASKS = (_task("Easy", per_byte=False), _task("Challenge", per_byte=True))
