"""Rewards that can be checked: --reward_functions=qwen_jax.align.rewards:NAME (PPO)."""

import re
from collections.abc import Sequence

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
