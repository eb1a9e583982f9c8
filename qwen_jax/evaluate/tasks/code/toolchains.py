"""Which tasks can run here: those that run programs need a sandbox and their language's tools."""

from collections.abc import Iterable, Sequence

from qwen_jax.evaluate.task import Task
from qwen_jax.sandbox import SandboxError, languages, programs


def not_run(tasks: Iterable[Task]) -> dict[str, str]:
    """Returns key -> reason of each task whose language has no toolchain on this machine."""
    missing, found = languages.missing(), {}
    for task in tasks:
        settings = task.generation
        if settings is not None and settings.sandboxed and settings.language in missing:
            lacks = missing[settings.language]
            found[task.key] = f"no {settings.language}: install {lacks}"
    return found


def require_sandbox(
    tasks: Sequence[Task], *, unsafe: bool = False, skip: bool = False, flag: str = "--tasks"
) -> None:
    """Refuses tasks whose programs cannot be run here, before anything else is done.

    Args:
      unsafe: run programs even where the kernel isolates neither files nor network.
      skip: whether a task without a toolchain is left out by `run`, as long as another one is left.
      flag: for errors.

    Raises:
      SandboxError: code cannot be isolated here, or a toolchain is missing.
    """
    if any(one.generation is not None and one.generation.sandboxed for one in tasks):
        programs.python(unsafe)
    lacking = not_run(tasks)
    if lacking and not (skip and len(lacking) < len(tasks)):
        raise SandboxError(
            f"{', '.join(lacking)} cannot be run here: {'; '.join(sorted(set(lacking.values())))}.",
            flag,
            "install it, or leave the task out.",
        )
