"""All tasks by name, and the suites of the report's tables."""

from qwen_jax.errors import ConfigError
from qwen_jax.evaluate.task import Mean, Task
from qwen_jax.evaluate.tasks import (
    bbh,
    ceval,
    chat_choices,
    cmmlu,
    gsm8k,
    humaneval,
    math,
    mbpp,
    mmlu,
    unanswerable,
)
from qwen_jax.evaluate.tasks.code import chat as code_chat
from qwen_jax.evaluate.tasks.code import pack

TASKS: dict[str, Task] = {
    task.key: task
    for task in (
        mmlu.MMLU,
        ceval.CEVAL,
        cmmlu.CMMLU,
        *gsm8k.TASKS,
        *math.TASKS,
        *humaneval.TASKS,
        *mbpp.TASKS,
        *bbh.TASKS,
        *chat_choices.TASKS,
        *code_chat.TASKS,
        *pack.TASKS,
        *unanswerable.TASKS,
    )
}
SUITES = {
    "table2": ("mmlu", "ceval", "gsm8k", "math", "humaneval", "mbpp", "bbh"),
    "table5": (
        *("mmlu_chat", "mmlu_chat_few_shot", "ceval_chat", "ceval_chat_few_shot"),
        *("gsm8k_chat", "gsm8k_chat_few_shot", "humaneval_chat", "bbh_chat", "bbh_chat_few_shot"),
    ),
    "table12": ("gsm8k_chat", "math401", "math23k"),
    **code_chat.SUITES,
    **pack.SUITES,
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
            known = ", ".join([*SUITES, *TASKS])
            raise ConfigError(f"there is no task {unknown[0]!r}.", flag, f"use {known}.")
        found |= {key: TASKS[key] for key in keys}
    return list(found.values())
