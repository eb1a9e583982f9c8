"""Rewards of the true checker, which a learned reward model stands for.

PPO and GRPO name these functions as --reward_functions; `result` is a column of the prompts' file.
Every call is recorded, so that truth over training can be shown next to the reward.
"""

import fractions
from collections.abc import Sequence

from qwen_jax.synthetic.worlds.problem import final_number

seen: list[float] = []  # share of right completions of each call: one per training step


def result(completions: Sequence[str], result: Sequence[str]) -> list[float]:
    """Returns 1 for each completion whose result is its prompt's, else 0."""
    rights = [float(is_result(*each)) for each in zip(completions, result, strict=True)]
    seen.append(sum(rights) / len(rights))
    return rights


def watch(completions: Sequence[str], result: Sequence[str]) -> list[float]:
    """Returns 0 for each completion, and records how many are right: the reward stays learned."""
    rights = [is_result(*each) for each in zip(completions, result, strict=True)]
    seen.append(sum(rights) / len(rights))
    return [0.0] * len(rights)


def is_result(text: str, expected: str) -> bool:
    """Returns whether a text ends with a number, or is a text, up to spaces and a final period."""
    try:
        number = fractions.Fraction(expected)
    except ValueError:
        return _plain(text) == _plain(expected)
    return final_number(text) == number


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".。")
