"""Votes: a rater's ranking of the answers to one question, read back from the page's files.

A row of a vote file is {"page", "rater", "question", "shown", "ranking", ...}: codes of the answers
as they were shown, and groups of codes, the best first. Codes of one group are tied. Report: 3.3.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise.sheet import Sheet
from qwen_jax.utils.jsonl import read_rows

_MAX_NAMED = 20  # bad rows that an error lists


@dataclasses.dataclass(frozen=True)
class Vote:
    """A ranking of the answers to a question.

    Attributes:
      ranking: groups of codes of answers (or of names of models), the best group first; answers of
        one group are tied.
      shown: the same codes or names, in the order in which the rater saw them; may be empty.
      where: file and line.
    """

    question: str
    category: str
    rater: str
    ranking: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...] = ()
    where: str = ""


class Outcome(NamedTuple):
    """The comparison of two answers, by one rater.

    `score` is 1 if `first` is better, 0 if `second` is, and 0.5 for a tie. Outcomes with the same
    `group`, a question, are drawn together by bootstraps; an empty one is a group of its own.
    """

    first: str
    second: str
    score: float
    group: str


def outcomes(votes: Iterable[Vote]) -> Iterator[tuple[Vote, Outcome]]:
    """Yields the comparison of every two answers of each vote; names are in alphabetical order."""
    for vote in votes:
        rank = {name: index for index, group in enumerate(vote.ranking) for name in group}
        names = sorted(rank)
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                a, b = rank[first], rank[second]
                score = 0.5 if a == b else float(a < b)
                yield vote, Outcome(first, second, score, vote.question)


def read_votes(paths: Sequence[str | os.PathLike], sheet: Sheet) -> list[Vote]:
    """Returns the votes of files that the page or a judge wrote.

    Args:
      sheet: the questions and answers that were judged.

    Raises:
      DataError: a file has no votes, or votes are invalid: of another page, for an unknown question
        or answer, not a ranking of what was shown, or a rater's second one on the same answers. All
        bad votes are counted, and the first ones named with file and line.
    """
    votes, bad, total = [], [], 0
    first: dict[tuple[str, str, frozenset[str]], str] = {}
    for path in paths:
        before = total
        for where, row in read_rows(path):
            total += 1
            found = _parse(row, sheet, where)
            if isinstance(found, Vote):
                key = (found.rater, found.question, frozenset(itertools.chain(*found.ranking)))
                if key in first:
                    found = (
                        f"{found.rater!r} voted on question {found.question!r} before, "
                        f"in {first[key]}"
                    )
                else:
                    first[key] = where
            if isinstance(found, Vote):
                votes.append(found)
            else:
                bad.append(f"{where}: {found}")
        if total == before:
            raise DataError("the file has no votes.", str(path), "pass a file that the page saved.")
    if bad:
        more = [f"and {len(bad) - _MAX_NAMED} more"] if len(bad) > _MAX_NAMED else []
        raise DataError(
            "\n         ".join(
                [f"{len(bad)} of {total} votes are invalid:", *bad[:_MAX_NAMED], *more]
            ),
            ", ".join(map(str, paths)),
            "correct or remove these lines; nothing was counted.",
        )
    return votes


def with_names(votes: Iterable[Vote], sheet: Sheet) -> list[Vote]:
    """Returns the votes with the names of models instead of the codes of answers."""
    names = {answer.code: answer.model for entry in sheet.entries for answer in entry.answers}
    return [
        dataclasses.replace(
            vote,
            ranking=tuple(tuple(names[code] for code in group) for group in vote.ranking),
            shown=tuple(names[code] for code in vote.shown),
        )
        for vote in votes
    ]


def vote_row(vote: Vote, page: str, **more: Any) -> dict[str, Any]:
    """Returns a vote as a row of a vote file.

    Args:
      vote: with codes, not names.
      page: the sheet's `page`.
      more: keys that are kept with it, such as a judge's text.
    """
    return {
        "page": page,
        "rater": vote.rater,
        "question": vote.question,
        "category": vote.category,
        "shown": list(vote.shown),
        "ranking": [list(group) for group in vote.ranking],
        **more,
    }


def _parse(row: Mapping[str, Any], sheet: Sheet, where: str) -> Vote | str:
    """Returns the vote, or what is wrong with it."""
    rater, question = row.get("rater"), row.get("question")
    shown, ranking = row.get("shown"), row.get("ranking")
    if not isinstance(rater, str) or not rater.strip():
        return "it has no rater"
    if not isinstance(question, str) or question not in sheet.by_id:
        return f"the question {str(question)[:60]!r} is unknown"
    if row.get("page") != sheet.page:
        return f"it belongs to the page {str(row.get('page'))[:40]!r}, not to {sheet.page!r}"
    groups = ranking if isinstance(ranking, list) else []
    ranked = [code for group in groups if isinstance(group, list) for code in group]
    known = sheet.by_id[question].codes
    for code in [*(shown if isinstance(shown, list) else []), *ranked]:
        if not isinstance(code, str) or code not in known:
            return f"{str(code)[:40]!r} is no answer (model) of question {question!r}"
    if len(set(ranked)) < max(2, len(ranked)) or not all(isinstance(g, list) and g for g in groups):
        return "the ranking is not a list of groups with two or more different answers"
    if shown and (
        not isinstance(shown, list) or collections.Counter(ranked) != collections.Counter(shown)
    ):
        return "the ranking does not have every answer that was shown exactly once"
    return Vote(
        question=question,
        category=sheet.by_id[question].question.category,
        rater=rater.strip(),
        ranking=tuple(tuple(group) for group in groups),
        shown=tuple(shown or ()),
        where=where,
    )
