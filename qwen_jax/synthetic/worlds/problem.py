"""A problem with a known result, and how problems are split and sampled.

The worlds of this folder are small enough for a model of a few million parameters to learn, and
their results can be checked exactly. Each has levels, from easy to hard, and the same problems in
English and Chinese.
"""

import dataclasses
import fractions
import hashlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from qwen_jax.errors import ConfigError, unknown_name

LANGUAGES = ("en", "zh")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question, its responses, and what a checker compares."""

    question: str  # the user's turn
    answer: str  # a right response in one sentence
    steps: str  # a right response that writes out every step
    wrong: str  # a wrong response with an error that people make
    result: str  # the number that a right response ends with
    level: str
    language: str
    key: str  # problems with equal keys are on the same side of the split


Make = Callable[[np.random.Generator, str, str], Problem]  # (rng, level, language)


def is_held_out(key: str, fraction: float = 0.1) -> bool:
    """Returns whether problems with this key are held out: a function of the key only.

    So every training set, of any seed and size, leaves out the same problems.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def sample(
    make: Make,
    levels: tuple[str, ...],
    number: int,
    *,
    seed: int,
    held_out: bool,
    distinct: bool = False,
    languages: tuple[str, ...] = LANGUAGES,
) -> list[Problem]:
    """Returns `number` random problems; levels and languages take turns.

    Args:
      make: makes a random problem of a level and a language.
      held_out: the side of the split.
      distinct: whether each question appears once; a level with too few of them gives fewer.

    Raises:
      ConfigError: there is no problem on this side of the split.
    """
    return list(_sample(make, levels, number, seed, held_out, distinct, languages))


def _sample(make, levels, number, seed, held_out, distinct, languages) -> Iterator[Problem]:
    rng = np.random.default_rng([seed, int(held_out)])
    seen: set[str] = set()
    kinds = [(level, language) for level in levels for language in languages]
    for index in range(number):
        for _ in range(1000):  # a level of few problems has found all of them by then
            problem = make(rng, *kinds[index % len(kinds)])
            if is_held_out(problem.key) == held_out and problem.question not in seen:
                break
        else:
            if not distinct:
                raise ConfigError(
                    f"no {'held-out' if held_out else 'training'} problem of level "
                    f"{kinds[index % len(kinds)][0]!r} was found in 1,000 tries.",
                    "worlds.sample(levels)",
                    "add a level with more problems.",
                )
            continue
        if distinct:
            seen.add(problem.question)
        yield problem


def final_number(text: str) -> fractions.Fraction | None:
    """Returns the last number of a response, which is its result; None if there is not any."""
    found = _NUMBER.findall(text.replace(",", ""))
    return fractions.Fraction(found[-1]) if found else None


def is_right(problem: Problem, response: str) -> bool:
    """Returns whether a response ends with the problem's result."""
    return final_number(response) == fractions.Fraction(problem.result)


def check_level(level: str, levels: tuple[str, ...], where: str) -> None:
    """Raises a ConfigError that names the known levels if this is not one of them."""
    if level not in levels:
        raise unknown_name("level", level, levels, where)
