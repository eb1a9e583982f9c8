"""Scores multiple choice by the likelihood of the choices. Report: 2.6.

Choices of an example that have one token each are scored by one row of the model, and longer ones
by a row each. Rows of the same worked examples share their prefix (inference/scoring.py).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qwen_jax.errors import DataError
from qwen_jax.evaluate.boundary import Split, split
from qwen_jax.evaluate.task import Example, Item, Task
from qwen_jax.inference.scoring import Row, Scorer, Scores
from qwen_jax.tokenizer.bpe import Tokenizer

TIE = 1e-6  # nats; smaller differences are rounding


@dataclasses.dataclass(frozen=True)
class Question(Item):
    """An example with its choices.

    Attributes:
      parts: prompt and choice as tokens, for each choice.
      rows: what the model computes.
    """

    choices: tuple[str, ...]
    parts: tuple[Split, ...]
    rows: tuple[Row, ...]


def encode(
    task: Task,
    example: Example,
    shots: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int,
) -> Question:
    """Returns the rows of an example. A prompt that is too long loses tokens from its beginning.

    Raises:
      DataError: a choice alone is longer than the model's context; names the example.
    """
    assert task.choices is not None
    prompt, choices = task.prompt(example, shots), task.choices(example)
    parts = split(tokenizer, prompt, choices)
    longest = max(len(part.context) + len(part.continuation) - 1 for part in parts)
    lost = max(0, longest - max_length)
    if any(lost >= len(part.context) for part in parts):
        raise DataError(
            f"a choice has {longest - min(len(part.context) for part in parts) + 1} tokens, and "
            f"the model's context {max_length}.",
            f"{task.key} {example.id}",
            "use a model with a longer context, or another --max_length.",
        )
    # Rows with equal tokens are one row: those of choices that have one token.
    scored: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for part in parts:
        context = part.context[lost:]
        tokens = context + part.continuation[:-1]
        first = len(context) - 1
        pairs = [(first + i, target) for i, target in enumerate(part.continuation)]
        scored.setdefault(tokens, []).extend(pairs)
    rows = tuple(Row(tokens, tuple(pairs)) for tokens, pairs in scored.items())
    return Question(example, prompt, lost, choices, tuple(parts), rows)


def score(
    scorer: Scorer,
    items: Sequence[Question],
    task: Task,
    *,
    progress: Callable[[int], object],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index of an item, its sample), as items are completed.

    Args:
      progress: receives the number of tokens just computed or reused.
    """
    rows, owners = [], []
    for index, item in enumerate(items):
        rows += item.rows
        owners += [index] * len(item.rows)
    first = {}
    for at, index in enumerate(owners):
        first.setdefault(index, at)
    missing = [len(item.rows) for item in items]
    found: dict[int, Scores] = {}
    for at, scores in scorer.score(rows, progress=progress):
        index = owners[at]
        found[at] = scores
        missing[index] -= 1
        if not missing[index]:
            begin = first[index]
            own = [found.pop(begin + i) for i in range(len(items[index].rows))]
            yield index, sample(items[index], own, task)


def sample(item: Question, scores: Sequence[Scores], task: Task) -> dict[str, Any]:
    """Returns the record of an example: the choices' log-probabilities and the verdict."""
    return compared(
        item,
        item.choices,
        _by_choice(item, scores),
        task,
        prompt_tokens=len(item.rows[0].tokens),
        separate=any(part.separate for part in item.parts),
    )


def compared(
    item: Item,
    choices: Sequence[str],
    logprobs: Sequence[Sequence[float]],
    task: Task,
    *,
    prompt_tokens: int | None,
    separate: bool,
) -> dict[str, Any]:
    """Returns the record of an example from log-probabilities of each choice's tokens, in nats.

    The choice with the highest sum wins, or per byte if the task says so; among equals, the first.
    The space that separates a choice from its prompt is not one of its bytes, as in lm-eval.

    Args:
      prompt_tokens: length of what the model read; None: not known.
      separate: whether a prompt and a choice were encoded separately, because tokens merge.
    """
    sums = [sum(one) for one in logprobs]
    sizes = [len((one.removeprefix(" ") or one).encode()) for one in choices]
    per_byte = [total / size for total, size in zip(sums, sizes, strict=True)]
    compared_by = per_byte if task.per_byte else sums
    best = max(compared_by)
    winners = [i for i, value in enumerate(compared_by) if best - value < TIE]
    right = task.letters.index(item.example.answer)
    chosen = compared_by.index(best)
    return {
        **item.example.identity,
        "prompt": item.prompt,
        "choices": list(choices),
        "logprobs": sums,
        "tokens": [len(one) for one in logprobs],
        "gold": item.example.answer,
        "extracted": task.letters[chosen],
        "rule": "highest log-probability" + " per byte" * task.per_byte,
        "correct": chosen == right,
        "correct_sum": sums.index(max(sums)) == right,
        "correct_per_byte": per_byte.index(max(per_byte)) == right,
        "correct_per_token": _best_per_token(logprobs) == right,
        "ties": len(winners) if len(winners) > 1 else 0,
        "prompt_tokens": prompt_tokens,
        "truncated": item.lost,
        "separate": separate,
    }


def _best_per_token(logprobs: Sequence[Sequence[float]]) -> int:
    means = [sum(one) / len(one) for one in logprobs]
    return means.index(max(means))


def _by_choice(item: Question, scores: Sequence[Scores]) -> list[tuple[float, ...]]:
    """Returns the log-probabilities of each choice's tokens."""
    left = {row.tokens: list(one.logprobs) for row, one in zip(item.rows, scores, strict=True)}
    found = []
    for part in item.parts:
        own = left[part.context[item.lost :] + part.continuation[:-1]]
        found.append(tuple(own[: len(part.continuation)]))
        del own[: len(part.continuation)]
    return found
