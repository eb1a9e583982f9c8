"""What a verdict depends on next to the model: the grader's code, and versions of libraries.

Also whose results a folder has, and those of earlier commands in it.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import qwen_jax
from qwen_jax import grading
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate import boundary, likelihood
from qwen_jax.evaluate.task import Task
from qwen_jax.utils.append_only import differences
from qwen_jax.utils.files import read_json, write_json

_FIX = "delete the file: it is written again, by each command for its tasks."
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


def claim(folder: pathlib.Path, identity: Mapping[str, Any]) -> bool:
    """Records in FOLDER/run.json whose results the folder has; returns whether it was new.

    Raises:
      ConfigError: it has those of another evaluation; lists every difference.
    """
    record, wanted = folder / "run.json", json.loads(json.dumps(identity))
    if new := not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, wanted)
    elif different := list(differences(read_json(record), wanted)):
        raise ConfigError(
            f"the folder has an evaluation with other settings: {'; '.join(different)}.",
            str(folder),
            "use another --output, or delete the folder.",
        )
    return new


def earlier(folder: pathlib.Path, task_of: Mapping[str, Task]) -> dict[str, dict[str, Any]]:
    """Returns key -> record of tasks that earlier commands evaluated in the same folder.

    Those of other versions of the graders are left out.

    Args:
      task_of: key -> the task, of all that are known.

    Raises:
      DataError: results.json is damaged.
    """
    return {
        key: one
        for key, one in results(folder)["tasks"].items()
        if key in task_of and one.get("grader") == grader(task_of[key])
    }


def results(folder: pathlib.Path) -> dict[str, Any]:
    """Returns results.json of earlier commands, or one without tasks.

    Raises:
      DataError: it is damaged.
    """
    found = {"tasks": {}, "data": {}} | read(folder / "results.json")
    if not all(isinstance(one, dict) for one in (found["data"], found["tasks"])) or not all(
        isinstance(one, dict) for one in found["tasks"].values()
    ):
        raise DataError("not the results of an evaluation.", str(folder / "results.json"), _FIX)
    return found


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a file of results has; nothing if there is none.

    Raises:
      DataError: it is damaged.
    """
    try:
        return read_json(path) if path.exists() else {}
    except DataError as error:
        raise DataError(error.what, error.where, _FIX) from error
