"""Prompts for rollouts: read, rendered in ChatML, and chosen so that tags are balanced.

Report: 3.2.1: about 6,600 tags, and a sampler that balances diversity and complexity.
"""

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from qwen_jax.data.chat.conversations import Counts, Skipped, Turn, turns_of
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.jsonl import read_rows


def read_prompt_turns(
    paths: Iterable[str | os.PathLike], counts: Counts
) -> Iterator[tuple[str, list[Turn]]]:
    """(place, turns) of each prompt; the last turn is what is to be answered.

    Rows have a "prompt" (text), or are conversations whose last answer is left out.

    Raises:
      DataError: a file is missing, damaged or of no known format, or none of its rows is usable.
    """
    for path in paths:
        before = counts.kept
        for place, row in read_rows(path):
            try:
                if isinstance(row.get("prompt"), str):
                    turns = [("user", row["prompt"])]
                else:
                    turns = turns_of(row, place)
                while turns and turns[-1][0] == "assistant":
                    turns.pop()
                if not turns or not turns[-1][1].strip():
                    raise Skipped("without a question")
            except Skipped as reason:
                counts.skip(str(reason), place)
                continue
            counts.kept += 1
            yield place, turns
        if counts.kept == before:
            raise DataError(
                f"no prompt can be used: {counts}.",
                str(path),
                "look at the first row that is named.",
            )


def read_prompts(
    paths: Iterable[str | os.PathLike], tokenizer: Tokenizer, *, max_tokens: int, counts: Counts
) -> Iterator[np.ndarray]:
    """int32 [T] for each prompt, ending in `<|im_start|>assistant\\n`.

    Formats are those of read_prompt_turns. Prompts over `max_tokens` are counted and left out.

    Raises:
      DataError: a file is missing, damaged or of no known format, or none of its rows is usable.
    """
    for path in paths:
        before = counts.kept
        for place, turns in read_prompt_turns([path], counts):
            tokens = chatml.prompt(turns, tokenizer)
            if len(tokens) > max_tokens:
                counts.kept -= 1
                counts.skip(f"longer than {max_tokens} tokens", place)
                continue
            yield tokens
        if counts.kept == before:
            raise DataError(
                f"no prompt can be used: {counts}.",
                str(path),
                "look at the first row that is named.",
            )


def text_of(turns: Sequence[Turn]) -> str:
    """A prompt as one text, which is its name in a tag file.

    A question alone is its own text; any other turns are "role: content", with blank lines between.
    """
    if [role for role, _ in turns] == ["user"]:
        return turns[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in turns)


def choose_diverse(tags: Mapping[str, Sequence[str]], number: int) -> list[str]:
    """`number` prompts that cover many tags, complex ones first (Lu et al. 2023, InsTag).

    Prompts are ordered by how many tags they have (complexity). One pass takes each prompt that
    brings a tag which this pass has not seen (diversity); then the tags are forgotten and the next
    pass begins, until there are enough. Ties keep the order of `tags`.

    All passes are found in one: a prompt is taken in the first pass that has not seen all of its
    tags, and what a pass sees depends on earlier prompts alone. So the time is linear in the number
    of tags given, however many passes there are.

    Args:
      tags: prompt -> its tags. A prompt without tags comes last.

    Raises:
      DataError: fewer prompts than asked for.

    Example:
      >>> choose_diverse({"a": ["math"], "b": ["math", "poem"], "c": ["code"]}, 2)
      ['b', 'c']
    """
    _check_number(tags, number, "choose_diverse(number)")
    ordered = sorted(
        (prompt for prompt in tags if tags[prompt]), key=lambda prompt: -len(set(tags[prompt]))
    )
    first_unseen: collections.Counter[str] = collections.Counter()  # tag -> pass
    later: dict[str, set[int]] = collections.defaultdict(set)  # tag -> passes after that one
    turn = []
    for prompt in ordered:
        turn.append(min(first_unseen[tag] for tag in tags[prompt]))
        for tag in set(tags[prompt]):
            later[tag].add(turn[-1])
            while first_unseen[tag] in later[tag]:
                later[tag].remove(first_unseen[tag])
                first_unseen[tag] += 1
    chosen = [ordered[place] for place in np.argsort(turn, kind="stable")[:number]]
    return chosen + [prompt for prompt in tags if not tags[prompt]][: number - len(chosen)]


def choose_weighted(
    tags: Mapping[str, Sequence[str]],
    number: int,
    *,
    seed: int,
    balance: float = 1.0,
    complexity: float = 1.0,
) -> list[str]:
    """`number` prompts drawn without replacement, each with the probability of its weight.

    A draw whose order says nothing: for rollouts that see every kind of prompt all the time, where
    choose_diverse puts complex ones first. Weights are those of tag_weights; the draw is by
    Gumbel-top-k (Efraimidis and Spirakis 2006), a function of (seed, the order of `tags`).

    Raises:
      DataError: fewer prompts than asked for.
      ConfigError: balance outside of [0, 1], complexity that is negative.
    """
    _check_number(tags, number, "choose_weighted(number)")
    weights = tag_weights(tags, balance=balance, complexity=complexity)
    keys = np.log(weights) + np.random.default_rng(seed).gumbel(size=len(weights))
    prompts = list(tags)
    return [prompts[place] for place in np.argsort(-keys, kind="stable")[:number]]


def tag_weights(
    tags: Mapping[str, Sequence[str]], *, balance: float = 1.0, complexity: float = 1.0
) -> np.ndarray:
    """How often each prompt should be drawn: float64 [prompts], sum 1, in the order of `tags`.

    weight(p) = n_p^(complexity - 1) * sum over the tags t of p of f_t^-balance, where f_t counts
    the prompts that have t and n_p the tags of p. With both 1 it is exact: draw a tag, all alike,
    then one of its prompts, all alike. balance=0 leaves tags as frequent as they are; between, a
    tag is drawn in proportion to f_t^(1 - balance), as languages are for multilingual models.
    complexity=0 takes the mean over a prompt's tags in place of the sum, so that their number does
    not matter. Prompts without tags are one more kind, as if they had a tag of their own.

    Raises:
      ConfigError: balance outside of [0, 1], complexity that is negative.
    """
    if not 0 <= balance <= 1 or not complexity >= 0:
        raise ConfigError(
            f"balance={balance}, complexity={complexity}.",
            "tag_weights",
            "balance is from 0 to 1, complexity 0 or more.",
        )
    given = [sorted(set(found)) or [None] for found in tags.values()]
    numbers: dict[str | None, int] = {}
    lengths = np.array([len(found) for found in given], np.int64)
    flat = np.fromiter(
        (numbers.setdefault(tag, len(numbers)) for found in given for tag in found),
        np.int64,
        lengths.sum(),
    )
    rarity = np.bincount(flat) ** -float(balance)
    weights = np.bincount(np.repeat(np.arange(len(given)), lengths), rarity[flat], len(given))
    weights *= lengths ** (complexity - 1.0)
    return weights / weights.sum()


def _check_number(tags: Mapping[str, Sequence[str]], number: int, where: str) -> None:
    if number > len(tags):
        raise DataError(
            f"{number} prompts wanted of {len(tags)}.", where, "ask for fewer, or tag more."
        )
