"""Evaluation: tasks, how they are run, and verdicts on answers. Imported when they are used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_jax.evaluate.checkpoint import run
    from qwen_jax.evaluate.pairwise.elo import elo
    from qwen_jax.evaluate.server import Server
    from qwen_jax.evaluate.task import Task
    from qwen_jax.evaluate.tasks import TASKS
    from qwen_jax.grading.code import pass_at_k
    from qwen_jax.grading.extract import extract_answer
    from qwen_jax.grading.math import math_equal

_WHERE = {
    "Server": "qwen_jax.evaluate.server",
    "TASKS": "qwen_jax.evaluate.tasks",
    "Task": "qwen_jax.evaluate.task",
    "elo": "qwen_jax.evaluate.pairwise.elo",
    "extract_answer": "qwen_jax.grading.extract",
    "math_equal": "qwen_jax.grading.math",
    "pass_at_k": "qwen_jax.grading.code",
    "run": "qwen_jax.evaluate.checkpoint",
}
__all__ = ["TASKS", "Server", "Task", "elo", "extract_answer", "math_equal", "pass_at_k", "run"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
