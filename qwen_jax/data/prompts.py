"""Prompts for rollouts: read, rendered in ChatML, and chosen so that topics are balanced.

Report: 3.2.1: about 6,600 tags, and a sampler that balances diversity and complexity.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from qwen_jax.data.conversations import Counts, Skipped, turns_of
from qwen_jax.data.json_rows import read_rows
from qwen_jax.errors import DataError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer


def read_prompts(paths: Iterable[str | os.PathLike], tokenizer: Tokenizer, *, max_tokens: int,
                 counts: Counts) -> Iterator[np.ndarray]:
    """int32 [T] for each prompt, ending in `<|im_start|>assistant\\n`.

    Rows have a "prompt" (text), or are conversations whose last answer is left out. Those longer
    than `max_tokens` are counted and left out.

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
            tokens = chatml.prompt(turns, tokenizer)
            if len(tokens) > max_tokens:
                counts.skip(f"longer than {max_tokens} tokens", place)
                continue
            counts.kept += 1
            yield tokens
        if counts.kept == before:
            raise DataError(f"no prompt can be used: {counts}.", str(path),
                            "look at the first row that is named.")


def choose_diverse(tags: Mapping[str, Sequence[str]], number: int) -> list[str]:
    """`number` prompts that cover many tags, complex ones first (Lu et al. 2023, InsTag).

    Prompts are ordered by how many tags they have (complexity). One pass takes each prompt that
    brings a tag which this pass has not seen (diversity); then the tags are forgotten and the next
    pass begins, until there are enough. Ties keep the order of `tags`.

    Args:
      tags: prompt -> its tags. A prompt without tags comes last.

    Raises:
      DataError: fewer prompts than asked for.

    Example:
      >>> choose_diverse({"a": ["math"], "b": ["math", "poem"], "c": ["code"]}, 2)
      ['b', 'c']
    """
    if number > len(tags):
        raise DataError(f"{number} prompts wanted of {len(tags)}.", "choose_diverse(number)",
                        "ask for fewer, or tag more.")
    left = sorted((prompt for prompt in tags if tags[prompt]),
                  key=lambda prompt: -len(set(tags[prompt])))
    chosen: list[str] = []
    while left and len(chosen) < number:
        seen: set[str] = set()
        rest = []
        for prompt in left:
            if len(chosen) < number and not seen.issuperset(tags[prompt]):
                chosen.append(prompt)
                seen.update(tags[prompt])
            else:
                rest.append(prompt)
        left = rest
    untagged = [prompt for prompt in tags if not tags[prompt]]
    return chosen + untagged[:number - len(chosen)]
