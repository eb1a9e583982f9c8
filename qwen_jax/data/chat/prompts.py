"""Prompts for rollouts: reads them, renders them by the template, and selects a balanced set.

Report: 3.2.1: about 6,600 tags, and a sampler that balances diversity and complexity.
"""

import collections
import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qwen_jax.data.chat.dialogue import (
    ANSWERS,
    PROMPTS,
    TURN_LISTS,
    Dialogue,
    check_format,
    read_dialogue,
)
from qwen_jax.data.chat.pairs import parse_pairs
from qwen_jax.data.chat.render import Turn, check_template, for_template, render
from qwen_jax.data.chat.rows import Counts, Fields, Skipped, nothing_usable, read_usable
from qwen_jax.errors import ConfigError, DataError, TokenizerError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import tokens as template


def read_prompt_turns(
    paths: Iterable[str | os.PathLike], counts: Counts
) -> Iterator[tuple[str, list[Turn]]]:
    """Yields (file and row, turns) of each prompt; the model responds to the last turn.

    A row has a "prompt" (text or turns), or is a conversation, whose last response is left out, or
    a preference pair, of which the prompt is used. "system", "tools" and "history" belong to the
    prompt.

    Raises:
      DataError: a file is missing, corrupted or in an unknown format, or has no usable row.
    """
    for where, dialogue, _ in _read_dialogues(paths, counts, columns=()):
        yield where, render(dialogue.messages, dialogue.tools)


def _read_dialogues(
    paths: Iterable[str | os.PathLike], counts: Counts, *, columns: Collection[str] | None
) -> Iterator[tuple[str, Dialogue, dict[str, Any]]]:
    """Yields where, prompt and row of the file; `columns` as in read_prompt_rows."""

    def parse(fields: Fields, row: dict[str, Any]) -> list[tuple[str, Dialogue, dict[str, Any]]]:
        for key in row if columns is None else columns:
            fields.take(key)
        if "chosen" in row and fields.first((*TURN_LISTS, *PROMPTS)) is None:
            pairs = parse_pairs(fields, row)[:1]
            return [(fields.where, pair.rendered[0], row) for pair in pairs]
        return [(fields.where, _prompt_of(fields, row), row)]

    return read_usable(paths, counts, "prompts", parse)


def prompt_of(fields: Fields, row: dict[str, Any]) -> list[Turn]:
    """Returns the turns of a row's prompt; the model responds to the last one.

    Raises:
      DataError: the row is in an unknown format.
      Skipped: it has no prompt.
    """
    dialogue = _prompt_of(fields, row)
    return render(dialogue.messages, dialogue.tools)


def _prompt_of(fields: Fields, row: dict[str, Any]) -> Dialogue:
    check_format(fields, row)
    dialogue = read_dialogue(fields, answer=False)
    for key in ANSWERS:
        fields.take(key)  # an answer is no part of the prompt
    messages = list(dialogue.messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role == "system" or not messages[-1].text.strip():
        raise Skipped("no prompt")
    return dataclasses.replace(dialogue, messages=tuple(messages))


def read_prompts(
    paths: Iterable[str | os.PathLike],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    counts: Counts,
    variables: Mapping[str, Any] | None = None,
) -> Iterator[np.ndarray]:
    """Yields the tokens of each prompt, int32 [T], which end where the assistant's turn begins.

    Formats are as in read_prompt_turns. Prompts longer than `max_tokens` are skipped and counted.

    Raises:
      DataError: a file is missing, corrupted or in an unknown format, or has no usable row.
    """
    rows = read_prompt_rows(
        paths, tokenizer, max_tokens=max_tokens, counts=counts, variables=variables
    )
    return (tokens for tokens, _ in rows)


def read_prompt_rows(
    paths: Iterable[str | os.PathLike],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    counts: Counts,
    columns: Collection[str] | None = (),
    variables: Mapping[str, Any] | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Like read_prompts, with the row of each prompt as it is in the file.

    Args:
      columns: keys that the caller reads in the rows, so that they are not counted as unread; None:
        all.
      variables: of the chat template; those of a row come on top.

    Raises:
      TokenizerError: the template is malformed, jinja2 is not installed, or the tokenizer has no
        template for the variables.
    """
    template.check_variables(tokenizer, variables or {})
    for path in paths:
        before = counts.kept
        for where, dialogue, row in _read_dialogues([path], counts, columns=columns):
            try:
                tokens = _encode(dialogue, tokenizer, variables or {})
            except Skipped as reason:
                counts.kept -= 1
                counts.skip(str(reason), where)
                continue
            if len(tokens) > max_tokens:
                counts.kept -= 1
                counts.skip(f"longer than {max_tokens} tokens", where)
                continue
            yield tokens, row
        if counts.kept == before:
            raise nothing_usable("prompts", counts, path)


def _encode(dialogue: Dialogue, tokenizer: Tokenizer, variables: Mapping[str, Any]) -> np.ndarray:
    messages, tools = for_template(dialogue.messages, dialogue.tools)
    check_template(tokenizer, messages, tools)
    try:
        return template.prompt(tokenizer, messages, tools, **{**variables, **dialogue.variables})
    except TokenizerError as error:
        raise Skipped(error.what) from None


def text_of(turns: Sequence[Turn]) -> str:
    """Returns a prompt as one text, which is its key in a tag file.

    A single user turn is its own text. Other turns are "role: content", separated by blank lines.
    """
    if [role for role, _ in turns] == ["user"]:
        return turns[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in turns)


def choose_diverse(tags: Mapping[str, Sequence[str]], number: int) -> list[str]:
    """Selects `number` prompts that cover many tags, complex ones first (Lu et al. 2023, InsTag).

    Prompts are sorted by number of tags, most first (complexity). One pass takes each prompt that
    has a tag new to this pass (diversity). Then the seen tags are cleared and the next pass starts,
    until there are enough prompts. Ties keep the order of `tags`.

    One loop computes all passes: a prompt is taken in the first pass that has not seen all of its
    tags, and what a pass has seen depends only on earlier prompts. The time is therefore linear in
    the number of tags, regardless of the number of passes.

    Args:
      tags: prompt -> its tags. Prompts without tags come last.

    Raises:
      DataError: there are fewer prompts than requested.

    Example:
      >>> choose_diverse({"a": ["math"], "b": ["math", "poem"], "c": ["code"]}, 2)
      ['b', 'c']
    """
    _check_number(tags, number, "choose_diverse(number)")
    ordered = sorted(
        (prompt for prompt in tags if tags[prompt]), key=lambda prompt: -len(set(tags[prompt]))
    )
    first_unseen: collections.Counter[str] = collections.Counter()  # tag -> pass
    later: dict[str, set[int]] = collections.defaultdict(set)  # tag -> later passes that saw it
    passes = []
    for prompt in ordered:
        passes.append(min(first_unseen[tag] for tag in tags[prompt]))
        for tag in set(tags[prompt]):
            later[tag].add(passes[-1])
            while first_unseen[tag] in later[tag]:
                later[tag].remove(first_unseen[tag])
                first_unseen[tag] += 1
    chosen = [ordered[index] for index in np.argsort(passes, kind="stable")[:number]]
    return chosen + [prompt for prompt in tags if not tags[prompt]][: number - len(chosen)]


def choose_weighted(
    tags: Mapping[str, Sequence[str]],
    number: int,
    *,
    seed: int,
    balance: float = 1.0,
    complexity: float = 1.0,
) -> list[str]:
    """Samples `number` prompts without replacement, with probabilities given by tag_weights.

    The order of the result is random, so rollouts see every kind of prompt throughout training;
    choose_diverse puts complex prompts first. The sampler is Gumbel-top-k (Efraimidis and Spirakis
    2006), a function of the seed and the order of `tags`.

    Raises:
      DataError: there are fewer prompts than requested.
      ConfigError: balance is outside [0, 1], or complexity is negative.
    """
    _check_number(tags, number, "choose_weighted(number)")
    weights = tag_weights(tags, balance=balance, complexity=complexity)
    keys = np.log(weights) + np.random.default_rng(seed).gumbel(size=len(weights))
    prompts = list(tags)
    return [prompts[index] for index in np.argsort(-keys, kind="stable")[:number]]


def tag_weights(
    tags: Mapping[str, Sequence[str]], *, balance: float = 1.0, complexity: float = 1.0
) -> np.ndarray:
    """Returns sampling probabilities of the prompts: float64 [prompts], in the order of `tags`.

    weight(p) = n_p^(complexity - 1) * sum over the tags t of p of f_t^-balance, where f_t is the
    number of prompts with tag t and n_p the number of tags of p. If both parameters are 1, this
    samples a tag uniformly, then one of its prompts uniformly. balance=0 keeps the tags'
    frequencies. Values in between sample a tag in proportion to f_t^(1 - balance), as multilingual
    models do with languages. complexity=0 takes the mean over a prompt's tags instead of the sum,
    which removes the effect of their number. Prompts without tags share one tag.

    Raises:
      ConfigError: balance is outside [0, 1], or complexity is negative.
    """
    if not 0 <= balance <= 1 or not complexity >= 0:
        raise ConfigError(
            f"balance={balance} or complexity={complexity} is out of range.",
            "tag_weights",
            "set balance to a number from 0 to 1, and complexity to 0 or more.",
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
            f"{number} prompts were requested, but there are only {len(tags)}.",
            where,
            "request fewer, or tag more.",
        )
