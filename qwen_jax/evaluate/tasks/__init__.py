"""All tasks by name, and the suites of the report's tables."""

from qwen_jax.errors import unknown_name
from qwen_jax.evaluate.task import Mean, Task
from qwen_jax.evaluate.tasks import (
    agents,
    appendix,
    bbh,
    ceval,
    chat_choices,
    cmmlu,
    gsm8k,
    humaneval,
    math,
    math_full,
    mbpp,
    mmlu,
    unanswerable,
)
from qwen_jax.evaluate.tasks.code import chat as code_chat
from qwen_jax.evaluate.tasks.code import pack

TASKS: dict[str, Task] = {
    task.key: task
    for task in (
        *mmlu.TASKS,
        *ceval.TASKS,
        *cmmlu.TASKS,
        *gsm8k.TASKS,
        *math.TASKS,
        *math_full.TASKS,
        *humaneval.TASKS,
        *mbpp.TASKS,
        *bbh.TASKS,
        *chat_choices.TASKS,
        *code_chat.TASKS,
        *pack.TASKS,
        *unanswerable.TASKS,
        *agents.TASKS,
        *appendix.TASKS,
    )
}
_TABLE_2 = ("mmlu", "ceval", "gsm8k", "math", "humaneval", "mbpp", "bbh")
SUITES = {
    "table2": _TABLE_2,
    "table2@lm_eval": tuple(f"{name}@lm_eval" for name in _TABLE_2),
    "table5": (
        *("mmlu_chat", "mmlu_chat_few_shot", "ceval_chat", "ceval_chat_few_shot"),
        *("gsm8k_chat", "gsm8k_chat_few_shot", "humaneval_chat", "bbh_chat", "bbh_chat_few_shot"),
    ),
    "table12": ("gsm8k_chat", "math401", "math23k"),
    **code_chat.SUITES,
    **pack.SUITES,
    **agents.SUITES,
    **appendix.SUITES,
}
MEANS: dict[str, Mean] = {**pack.MEANS}


def select(names: tuple[str, ...], flag: str = "--tasks") -> list[Task]:
    """Returns the tasks of names and suites, each once.

    Args:
      flag: for errors.

    Raises:
      ConfigError: a name is unknown.
    """
    found: dict[str, Task] = {}
    for name in names:
        keys = SUITES.get(name, (name,))
        unknown = [key for key in keys if key not in TASKS]
        if unknown:
            raise unknown_name("task", unknown[0], [*SUITES, *TASKS], flag)
        found |= {key: TASKS[key] for key in keys}
    return list(found.values())
