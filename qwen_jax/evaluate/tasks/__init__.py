"""All tasks by name, and the suites of the report's tables."""

from qwen_jax.errors import ConfigError
from qwen_jax.evaluate.task import Task
from qwen_jax.evaluate.tasks import (
    appendix,
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
        *unanswerable.TASKS,
        *appendix.TASKS,
    )
}
SUITES = {
    "table2": ("mmlu", "ceval", "gsm8k", "math", "humaneval", "mbpp", "bbh"),
    "table5": ("mmlu_chat", "ceval_chat", "gsm8k_chat"),
    "table12": ("gsm8k_chat", "math401", "math23k"),
    **appendix.SUITES,
}


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
