"""What a verdict depends on next to the model: the grader's code, and versions of libraries."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import pathlib
import platform
from typing import Any

import qwen_jax
from qwen_jax import grading
from qwen_jax.evaluate import boundary, likelihood
from qwen_jax.evaluate.task import Task

_LIBRARIES = ("jax", "numpy", "sympy")


def versions() -> dict[str, str | None]:
    """Returns the versions of this package, Python and libraries; None: not installed."""
    found: dict[str, str | None] = {
        "qwen_jax": qwen_jax.__version__,
        "python": platform.python_version(),
    }
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def grader(task: Task) -> dict[str, Any]:
    """Returns the name of what gives a task's verdicts, and a SHA-256 of its code.

    Samples are compared only if these are equal. The second opinion of sympy counts as code.
    """
    if task.generation is None:
        files = [pathlib.Path(inspect.getfile(module)) for module in (likelihood, boundary)]
        name = "likelihood" + " per byte" * task.per_byte
        return {"name": name, "sha256": _hash(*files)}
    grade = task.generation.grade
    name = f"{grade.__module__}.{grade.__qualname__}"
    folder = pathlib.Path(grading.__path__[0])
    files = [pathlib.Path(inspect.getfile(grade)), *sorted(folder.rglob("*.py"))]
    has_sympy = importlib.util.find_spec("sympy") is not None
    return {"name": name, "sha256": _hash(*files), "sympy": has_sympy}


@functools.cache
def _hash(*files: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
