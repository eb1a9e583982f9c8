"""CMMLU: 67 Chinese subjects, multiple choice, 5-shot (report, Table 15).

Prompts and scoring are those of C-Eval (ceval.py), on the test set. Li et al. 2023; cmmlu.zip.
"""

from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Questions, Task
from qwen_jax.evaluate.tasks import ceval, lettered, published

QUESTIONS = 11_582


def read(data: DataFolders) -> Questions:
    return lettered.read_archive(
        data,
        "cmmlu.zip",
        test="test/{}.csv",
        dev="dev/{}.csv",
        count=QUESTIONS,
        question="Question",
        answer="Answer",
    )


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
