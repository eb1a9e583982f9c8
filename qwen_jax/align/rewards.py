"""Rewards that a program computes: --reward_functions=MODULE:NAME, for PPO and GRPO."""

import copy
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from qwen_jax.config import warn_renamed
from qwen_jax.errors import ConfigError, TrainingError, unknown_name

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


Row = Mapping[str, Any]  # a prompt's row, as it is in its file


class RewardFunction:
    """A user's reward function, called with what its parameters name.

    By position or by the names `prompts` and `completions` it gets lists of texts: a prompt is the
    full input in ChatML, a completion the generated text without the end token. `rows` is the list
    of the prompts' rows. Every other name is a column of the rows, a list of its values, None where
    a row lacks it. `**kwargs` gets all columns. It returns one number per completion.

    Attributes:
      columns: the columns that it reads; None: all.
      needs_rows: whether it reads the rows at all.
    """

    def __init__(self, function: Callable):
        self._function = function
        self.name = getattr(function, "__name__", repr(function))
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError):  # some functions that are not written in Python
            self._signature = None
        parameters = list(self._signature.parameters.values()) if self._signature else []
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = [p.name for p in named]
        self._texts = [name for name in ("prompts", "completions") if everything or name in names]
        self._by_name = "completions" in names
        if not self._by_name:
            first = [
                p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]
            named = [p for p in named if p not in first[:2]]
        others = [p for p in named if p.name not in ("prompts", "completions", "rows")]
        self._rows = any(p.name == "rows" for p in named)
        self._named = tuple(p.name for p in others)
        self._required = tuple(p.name for p in others if p.default is p.empty)
        self._everything = everything
        self._present: list[str] | None = None  # the columns of all rows
        self.columns = None if everything or self._rows else self._named
        self.needs_rows = self.columns is None or bool(self.columns)

    def check(self, rows: Sequence[Row], where: str) -> None:
        """
        Args:
          rows: the rows of all prompts; may be empty unless needs_rows.
          where: the flag that names the files.

        Raises:
          ConfigError: the function cannot be called with prompts and completions, or no row has a
            column that it requires.
        """
        self._present = sorted(set().union(*rows))
        texts, columns = self._arguments([], [], rows[:1])
        try:
            if self._signature is not None:
                self._signature.bind(*texts, **columns)
        except TypeError as error:
            raise ConfigError(
                f"reward function {self.name} cannot be called with prompts and completions: "
                f"{error}.",
                "--reward_functions",
                "its first two parameters are prompts and completions.",
            ) from None
        missing = [name for name in self._required if name not in self._present]
        if missing:
            raise ConfigError(
                f"reward function {self.name} takes {', '.join(missing)}, which no row of the "
                f"prompts has. The rows have {', '.join(self._present) or 'no keys'}.",
                f"{where}, --reward_functions",
                "add the column to the rows, or give the parameter a default.",
            )

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], rows: Sequence[Row]
    ) -> np.ndarray:
        """Returns the rewards: float32 [completions].

        Args:
          rows: the row of each completion's prompt; may be empty unless needs_rows.

        Raises:
          TrainingError: the function raises, with its traceback, or does not return one finite
            number per completion; the error names the sample.
        """
        texts, columns = self._arguments(prompts, completions, rows)
        try:
            returned = self._function(*texts, **columns)
            text = _text_in(returned)
            rewards = np.zeros(0) if text is not None else np.asarray(returned, np.float32)
        except (Exception, SystemExit) as error:  # user code may raise anything
            trace = error.__traceback__ and error.__traceback__.tb_next  # the user's frames
            lines = "".join(traceback.format_exception(type(error), error, trace))
            raise TrainingError(
                lines.strip(),
                f"reward function {self.name}",
                f"fix the function; the first sample of its batch is {prompts[0][-200:]!r} -> "
                f"{completions[0][:200]!r}.",
            ) from error
        if text is not None:
            raise TrainingError(
                f"it returned the text {text[:40]!r} as a reward.",
                f"reward function {self.name}",
                "return numbers: float(...) of the text.",
            )
        self._check(rewards, prompts, completions)
        return rewards

    def _arguments(
        self, prompts: Sequence[str], completions: Sequence[str], rows: Sequence[Row]
    ) -> tuple[tuple, dict[str, Any]]:
        """Returns the arguments by position and by name: copies, which a function may change."""
        prompts, completions, rows = list(prompts), list(completions), copy.deepcopy(rows)
        given = self._columns_of(rows) | ({"rows": list(rows)} if self._rows else {})
        if not self._by_name:
            return (prompts, completions), given
        texts = {"prompts": prompts, "completions": completions}
        return (), {name: texts[name] for name in self._texts} | given

    def _columns_of(self, rows: Sequence[Row]) -> dict[str, list]:
        """Returns the columns that the function takes."""
        if not self.needs_rows:
            return {}
        present = sorted(set().union(*rows)) if self._present is None else self._present
        names = [n for n in self._named if n in present or n in self._required]
        if self._everything:
            names += [n for n in present if n not in (*names, "prompts", "completions", "rows")]
        return {name: [row.get(name) for row in rows] for name in names}

    def _check(self, rewards: np.ndarray, prompts, completions) -> None:
        if rewards.shape != (len(completions),):
            raise TrainingError(
                f"it returned rewards of shape {rewards.shape} for {len(completions)} completions.",
                f"reward function {self.name}",
                "return one number per completion.",
            )
        bad = np.flatnonzero(~np.isfinite(rewards))
        if len(bad):
            raise TrainingError(
                f"the reward of sample {bad[0]} is {rewards[bad[0]]}: "
                f"{prompts[bad[0]][-200:]!r} -> {completions[bad[0]][:200]!r}.",
                f"reward function {self.name}",
                "return finite numbers.",
            )


def _text_in(rewards: Any) -> str | None:
    """Returns the first text among rewards, which NumPy would convert; None if there is none."""
    items = [rewards] if isinstance(rewards, (str, bytes)) else np.asarray(rewards, object).flat
    texts = (item for item in items if isinstance(item, (str, bytes)))
    return next((t if isinstance(t, str) else t.decode(errors="replace") for t in texts), None)


def columns_of(functions: Iterable[RewardFunction]) -> Collection[str] | None:
    """Returns the columns of the prompts' rows that the functions read; None: all."""
    columns = [function.columns for function in functions]
    if any(each is None for each in columns):
        return None
    return {name for each in columns for name in each or ()}


def load_function(name: str) -> Callable:
    """Returns the reward function named "module:function".

    The former name of one of our modules still works, with a warning, unless a user module has that
    name.

    Raises:
      ConfigError: the module or function does not exist.
    """
    module, _, function = name.partition(":")
    if module.endswith(".py"):
        dotted = module.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise ConfigError(
            f"{module} is a file, not the name of a module.",
            f"--reward_functions={name}",
            f"use {dotted}:{function}, from the folder that it is relative to.",
        )
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
