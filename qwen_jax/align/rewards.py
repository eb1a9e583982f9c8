"""Rule-based rewards for PPO: --reward_functions=qwen_jax.align.rewards:NAME."""

import importlib
import re
from collections.abc import Callable, Sequence
from types import ModuleType

from qwen_jax.config import warn_renamed
from qwen_jax.errors import ConfigError, unknown_name

_FORMER = {"experiments.rewards": "qwen_jax.align.rewards"}  # former module name -> current name
_SUM = re.compile(r"(-?\d+)\s*([-+*])\s*(-?\d+)")
_NUMBER = re.compile(r"-?\d+")
_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def arithmetic(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Returns 1 for each completion whose last number is the result of the prompt's last
    expression a + b, a - b or a * b, else 0.

    Raises:
      ValueError: a prompt contains no such expression.
    """
    return [
        float(_last_number(completion) == _result(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _result(prompt: str) -> int:
    matches = _SUM.findall(prompt)
    if not matches:
        raise ValueError(f"no expression a + b, a - b or a * b in {prompt[-100:]!r}")
    a, operation, b = matches[-1]
    return _OPERATIONS[operation](int(a), int(b))


def _last_number(completion: str) -> int | None:
    numbers = _NUMBER.findall(completion)
    return int(numbers[-1]) if numbers else None


def load_function(name: str) -> Callable:
    """Returns the reward function named "module:function".

    The former name of one of our modules still works, with a warning, unless a user module has that
    name.

    Raises:
      ConfigError: the module or function does not exist.
    """
    module, _, function = name.partition(":")
    try:
        names = vars(_import(module, f"--reward_functions={name}"))
    except ImportError as error:
        raise ConfigError(
            f"{error}.",
            f"--reward_functions={name}",
            "pass module:function; the module must be importable from the working directory.",
        ) from error
    if function not in names:
        raise unknown_name(
            "reward function",
            function,
            [n for n in names if n[0] != "_"],
            f"--reward_functions={name}",
        )
    return names[function]


def _import(module: str, where: str) -> ModuleType:
    """Imports the module, or our module that was formerly called this."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        if module not in _FORMER or not absent:
            raise
    warn_renamed(module, _FORMER[module], where)
    return importlib.import_module(_FORMER[module])
