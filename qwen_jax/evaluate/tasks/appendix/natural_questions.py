"""Natural Questions, open: answers without a document, zero-shot (report, Table 16).

The report has no prompts for it. Ours are the field's (lm-eval's nq_open), and a completion is its
first line: lm-eval also stops at a period or a comma, which some answers have. A right one equals
one of the answers after normalization (grading/open_answers.py). Lee et al. 2019;
NQ-open.dev.jsonl.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Example, Generation, Questions, Task, Verdict
from qwen_jax.evaluate.tasks import published
from qwen_jax.evaluate.tasks.appendix import rows
from qwen_jax.grading.open_answers import exact_match

QUESTIONS = 3_610
FILE = "NQ-open.dev.jsonl"


def read(data: DataFolders) -> Questions:
    found = []
    for index, (where, row) in enumerate(rows.numbered(data, FILE, f"nq_open/{FILE}")):
        question = rows.value(row, "question", str, where)
        answers = rows.texts(row, "answer", where)
        fields = {"question": question, "answers": answers}
        found.append(Example(index, fields, " | ".join(answers)))
    check_count(len(found), QUESTIONS, "questions", FILE)
    return Questions(tuple(found))


def template(example: Example, shots: Sequence[Example]) -> str:
    return f"Answer these questions:\n\nQ: {example.fields['question']}?\nA:"


def grade(text: str, example: Example) -> Verdict:
    extracted = text.strip() or None
    return Verdict(exact_match(text, example.fields["answers"]), extracted, "exact match")


NATURAL_QUESTIONS = Task(
    name="natural_questions",
    protocol="qwen",
    read=read,
    template=template,
    files=(FILE,),
    counts=QUESTIONS,
    source="Table 16",
    generation=Generation(
        ("\n",), 64, grade, gold=lambda example: f" {example.fields['answers'][0]}"
    ),
    published=published.TABLE_16["NQ"],
    checked=False,
)
TASKS = (NATURAL_QUESTIONS,)
