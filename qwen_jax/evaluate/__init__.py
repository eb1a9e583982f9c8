"""Evaluation: tasks, and how they are run. Names are imported when they are used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_jax.evaluate.checkpoint import run
    from qwen_jax.evaluate.task import Task
    from qwen_jax.evaluate.tasks import TASKS

_WHERE = {
    "TASKS": "qwen_jax.evaluate.tasks",
    "Task": "qwen_jax.evaluate.task",
    "run": "qwen_jax.evaluate.checkpoint",
}
__all__ = ["TASKS", "Task", "run"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
