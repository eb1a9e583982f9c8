"""The benchmarks of the report's appendix (Tables 15 to 17), in their distributions' formats.

The report has their scores, but neither prompts nor scripts, so the prompts are the field's. They
are not checked against published data.
"""

from qwen_jax.evaluate.tasks.appendix import (
    agieval,
    arc,
    boolq,
    commonsenseqa,
    gaokao,
    hellaswag,
    lambada,
    natural_questions,
    ocnli,
    piqa,
    siqa,
)

TASKS = (
    *agieval.TASKS,
    *gaokao.TASKS,
    *arc.TASKS,
    *boolq.TASKS,
    *commonsenseqa.TASKS,
    *natural_questions.TASKS,
    *lambada.TASKS,
    *hellaswag.TASKS,
    *piqa.TASKS,
    *siqa.TASKS,
    *ocnli.TASKS,
)
SUITES = {
    "table15": ("cmmlu", "agieval", "gaokao", "arc_easy", "arc_challenge"),
    "table16": ("boolq", "commonsenseqa", "natural_questions", "lambada"),
    "table17": ("hellaswag", "piqa", "siqa", "ocnli"),
}
