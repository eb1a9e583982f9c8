"""Rewards that can be checked: --reward_functions=qwen_jax.align.rewards:NAME (PPO)."""

import importlib
import re
from collections.abc import Callable, Sequence
from types import ModuleType

from qwen_jax.config import warn_renamed
from qwen_jax.errors import ConfigError, unknown_name

_FORMER = {"experiments.rewards": "qwen_jax.align.rewards"}  # module that moved -> where it is
_SUM = re.compile(r"(-?\d+)\s*([-+*])\s*(-?\d+)")
_NUMBER = re.compile(r"-?\d+")
_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def arithmetic(questions: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 where the last number of an answer is the result of the question's last a + b, a - b,
    a * b.

    Raises:
      ValueError: a question without such an expression.
    """
    return [
        float(_last_number(answer) == _result(question))
        for question, answer in zip(questions, answers, strict=True)
    ]


def _result(question: str) -> int:
    found = _SUM.findall(question)
    if not found:
        raise ValueError(f"no a + b, a - b or a * b in {question[-100:]!r}")
    a, operation, b = found[-1]
    return _OPERATIONS[operation](int(a), int(b))


def _last_number(answer: str) -> int | None:
    found = _NUMBER.findall(answer)
    return int(found[-1]) if found else None


def load_function(name: str) -> Callable:
    """The reward function that "module:function" names.

    A run that was started with the former name of a module of ours goes on, with a warning, unless
    the user has a module of that name.

    Raises:
      ConfigError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        found = vars(_import(module, f"--reward_functions={name}"))
    except ImportError as error:
        raise ConfigError(
            f"{error}.",
            f"--reward_functions={name}",
            "write module:function, importable from here.",
        ) from error
    if function not in found:
        raise unknown_name(
            "reward function",
            function,
            [n for n in found if n[0] != "_"],
            f"--reward_functions={name}",
        )
    return found[function]


def _import(module: str, where: str) -> ModuleType:
    """The module, or what a module of ours that had this name is called now."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        if module not in _FORMER or not absent:
            raise
    warn_renamed(module, _FORMER[module], where)
    return importlib.import_module(_FORMER[module])
