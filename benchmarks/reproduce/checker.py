"""Rewards of the true checker, which a learned reward model stands for.

PPO and GRPO name these functions as --reward_functions; `result` is a column of the prompts' file.
"""

import fractions
from collections.abc import Sequence

from qwen_jax.synthetic.worlds.problem import final_number


def result(completions: Sequence[str], result: Sequence[str]) -> list[float]:
    """Returns 1 for each completion whose last number is its prompt's result, else 0."""
    return [
        float(final_number(text) == fractions.Fraction(right))
        for text, right in zip(completions, result, strict=True)
    ]
