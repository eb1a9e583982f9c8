"""CMMLU: 67 Chinese subjects, multiple choice, 5-shot (report, Table 15).

Prompts and scoring are those of C-Eval (ceval.py), on the test set. Li et al. 2023; cmmlu.zip.
"""

from qwen_jax.evaluate.data_files import DataFolders, check_count
from qwen_jax.evaluate.task import Questions, Task
from qwen_jax.evaluate.tasks import ceval, lettered, published

QUESTIONS = 11_582


def read(data: DataFolders) -> Questions:
    members = data.archive("cmmlu.zip")
    found, shots = [], {}
    for subject in lettered.subjects(members, "test", ".csv"):
        names = {"question": "Question", "answer": "Answer"}
        found += lettered.read_table(members, f"test/{subject}.csv", subject, **names)
        shots[subject] = lettered.read_table(members, f"dev/{subject}.csv", subject, **names)
    check_count(len(found), QUESTIONS, "questions", "cmmlu.zip")
    return Questions(tuple(found), shots)


CMMLU = Task(
    name="cmmlu",
    protocol="qwen",
    read=read,
    template=ceval.template,
    files=("cmmlu.zip",),
    counts=QUESTIONS,
    source="Table 15",
    num_shots=5,
    choices=ceval.CEVAL.choices,
    macro=True,
    published=published.TABLE_15["CMMLU"],
)
