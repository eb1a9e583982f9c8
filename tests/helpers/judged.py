"""Sheets of questions with answers, and scripted raters, for the tests of pairwise evaluation."""

import random

from qwen_jax.evaluate.pairwise.questions import Question
from qwen_jax.evaluate.pairwise.sheet import Answer, Sheet, make_sheet
from qwen_jax.evaluate.pairwise.votes import Vote

HOSTILE = (
    '</script><script>alert(1)</script> <img src=x onerror=alert(1)> & "x" [[A]] @@DATA@@ 中文'
)


def sheet_of(
    models=("one", "two"), number=20, text=HOSTILE, categories=("math", "coding")
) -> Sheet:
    """A sheet whose answers do not contain the names of models."""
    return make_sheet(
        (
            (
                Question(f"q{i}", categories[i % len(categories)], (("user", f"{text} {i}"),)),
                [Answer(model, f"{text} {index} of {i}") for index, model in enumerate(models)],
            )
            for i in range(number)
        ),
        seed=0,
    )


def vote_by(sheet: Sheet, rater: str, better) -> list[Vote]:
    """Votes of a rater who sees the answers in a random order, with codes.

    better: (entry, answer) -> a number; equal ones are tied.
    """
    rng, votes = random.Random(rater), []
    for entry in sheet.entries:
        groups: dict[float, list[str]] = {}
        shown = rng.sample(entry.answers, len(entry.answers))
        for answer in shown:
            groups.setdefault(better(entry, answer), []).append(answer.code)
        ranking = tuple(tuple(groups[score]) for score in sorted(groups, reverse=True))
        codes = tuple(answer.code for answer in shown)
        votes.append(Vote(entry.question.id, entry.question.category, rater, ranking, codes))
    return votes
