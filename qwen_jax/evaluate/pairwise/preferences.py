"""Preference pairs from rankings of models' own responses. Report: 3.2.1.

Each vote ranks the responses to one prompt. Every two responses that a majority of raters orders
give a pair. Ties are counted and left out.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from qwen_jax.align.rewards import RewardFunction
from qwen_jax.data.chat.prompts import text_of
from qwen_jax.data.document import Document
from qwen_jax.data.split import Split
from qwen_jax.errors import DataError
from qwen_jax.evaluate.pairwise.questions import Question
from qwen_jax.evaluate.pairwise.sheet import Answer, Sheet
from qwen_jax.evaluate.pairwise.votes import Vote, outcomes
from qwen_jax.tokenizer.chatml import DEFAULT_SYSTEM


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two responses to a question, of which a majority of raters prefers `chosen`.

    Attributes:
      votes: raters who prefer `chosen`, and raters who prefer `rejected`; ties are in neither.
    """

    question: Question
    chosen: Answer
    rejected: Answer
    votes: tuple[int, int]

    def row(self) -> dict[str, Any]:
        """Returns a row of a file of pairs (data/chat/pairs.py), with the origin of both."""
        return {
            "prompt": self.question.row()["messages"],
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "question_id": self.question.id,
            "category": self.question.category,
            "votes": list(self.votes),
            "chosen_from": _origin(self.chosen),
            "rejected_from": _origin(self.rejected),
        }


@dataclasses.dataclass
class Dropped:
    """What gave no pair: responses, questions and comparisons, by reason."""

    empty: int = 0
    repeated: int = 0
    questions: int = 0
    ties: int = 0

    def __str__(self) -> str:
        return (
            f"left out: {self.empty:,} empty responses, {self.repeated:,} that repeat another, "
            f"{self.questions:,} prompts with fewer than two different ones, {self.ties:,} ties"
        )


def distinct(
    rows: Iterable[tuple[Question, Sequence[Answer]]], dropped: Dropped
) -> list[tuple[Question, list[Answer]]]:
    """Returns the questions with their different, non-empty responses; counts what it leaves out.

    Of equal responses the first stays. A question with fewer than two is left out.
    """
    found = []
    for question, answers in rows:
        kept: dict[str, Answer] = {}
        for answer in answers:
            if not answer.text.strip():
                dropped.empty += 1
            elif answer.text in kept:
                dropped.repeated += 1
            else:
                kept[answer.text] = answer
        if len(kept) < 2:
            dropped.questions += 1
        else:
            found.append((question, list(kept.values())))
    return found


def rank_by_rewards(sheet: Sheet, functions: Sequence[RewardFunction]) -> list[Vote]:
    """Returns a vote on each question: responses in the order of their rewards, equal ones tied.

    Args:
      functions: reward functions, whose rewards are added (align/rewards.py). They get the row of
        the question's file.

    Raises:
      ConfigError: a function requires a column that no row has.
      TrainingError: a function raises, or does not return a finite number for each response.
    """
    name = "checker " + "+".join(function.name for function in functions)
    for function in functions:
        function.check([entry.question.columns for entry in sheet.entries], "--prompts")
    votes = []
    for entry in sheet.entries:
        count = len(entry.answers)
        prompts = [chatml_text(entry.question)] * count
        texts = [answer.text for answer in entry.answers]
        columns = [entry.question.columns] * count
        scores = np.sum([function(prompts, texts, columns) for function in functions], axis=0)
        groups: dict[float, list[str]] = {}
        for answer, score in zip(entry.answers, scores, strict=True):
            groups.setdefault(float(score), []).append(answer.code)
        ranking = tuple(tuple(groups[score]) for score in sorted(groups, reverse=True))
        votes.append(Vote(entry.question.id, entry.question.category, name, ranking))
    return votes


def chatml_text(question: Question) -> str:
    """Returns the prompt as reward functions get it: the input in ChatML (tokenizer/chatml.py)."""
    turns = list(question.turns)
    if turns[0][0] != "system":
        turns.insert(0, ("system", DEFAULT_SYSTEM))
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return f"{text}<|im_start|>assistant\n"


def preferences(votes: Iterable[Vote], sheet: Sheet, dropped: Dropped) -> list[Preference]:
    """Returns a preference for every two responses that most raters order; counts ties.

    Args:
      votes: with codes of answers.
    """
    counts: dict[tuple[str, str, str], collections.Counter[float]] = {}
    for vote, (first, second, score, _) in outcomes(votes):
        key = (vote.question, first, second)
        counts.setdefault(key, collections.Counter())[score] += 1
    found = []
    for (question, first, second), scores in counts.items():
        entry = sheet.by_id[question]
        if scores[1.0] == scores[0.0]:
            dropped.ties += 1
            continue
        if scores[0.0] > scores[1.0]:
            first, second = second, first
        found.append(
            Preference(
                entry.question,
                entry.codes[first],
                entry.codes[second],
                (max(scores[1.0], scores[0.0]), min(scores[1.0], scores[0.0])),
            )
        )
    return found


@dataclasses.dataclass(frozen=True)
class PairSplit:
    """Pairs for training and evaluation. No prompt is on both sides.

    Attributes:
      train: pairs on the prompts for training.
      eval: pairs on held-out prompts, of the same models as in `train`.
      other_models: pairs on held-out prompts with a response of a held-out model.
      unused: number of pairs on prompts for training with a response of a held-out model.
    """

    train: list[Preference]
    eval: list[Preference]
    other_models: list[Preference]
    unused: int


def split_by_prompt(
    pairs: Sequence[Preference],
    *,
    eval_fraction: float,
    held_out_models: Collection[str] = (),
    seed: int = 0,
) -> PairSplit:
    """Returns the pairs, split by a hash of the prompt's text and by model.

    Args:
      eval_fraction: share of the prompts that are held out.
      held_out_models: models whose responses are only in `other_models`.

    Raises:
      DataError: no pair is left for training.
    """
    documents = {one.question.id: _document(one.question) for one in pairs}
    split = Split(eval_fraction, seed).balanced(documents.values())
    train, held, other, unused = [], [], [], 0
    for one in pairs:
        is_held = split.assign(documents[one.question.id])[0] == split.num_shards
        if held_out_models and {one.chosen.model, one.rejected.model} & set(held_out_models):
            other += [one] * is_held
            unused += not is_held
        else:
            (held if is_held else train).append(one)
    if not train:
        raise DataError(
            f"none of {len(pairs)} pairs is left for training.",
            "--eval_fraction, --held_out_models",
            "use more prompts, or hold out less.",
        )
    return PairSplit(train, held, other, unused)


def _document(question: Question) -> Document:
    return Document(question.id, text_of(question.turns))


def _origin(answer: Answer) -> dict[str, Any]:
    return {"model": answer.model, "finish": answer.finish, **answer.sampling}
