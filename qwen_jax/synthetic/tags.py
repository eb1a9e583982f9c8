"""Tags of prompts: taggers, normalized names and the tag file. Report: 3.2.1.

A tagger is any function from a list of prompts to a list of tags for each: tag_rules.py uses
patterns, model_tagger.py queries a model.

The tag file has one line per prompt: {"prompt": text, "tags": ["algebra", "length limit"]}. A
prompt with several turns is converted to text by prompts.text_of.
"""

import collections
import dataclasses
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from qwen_jax.data.chat.conversations import Counts
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.utils.append_only import AppendOnly
from qwen_jax.utils.jsonl import read_rows

Tagger = Callable[[Sequence[str]], list[list[str]]]
Tags = dict[str, list[str]]  # prompt -> its tags

_MAX_WORDS, _MAX_CHARACTERS = 5, 40  # maximum length of a tag; longer text is a sentence
_MAX_NAMED = 3
_FORMER_NAMES = {"summarising": "summarizing"}  # in files of earlier versions


def normalize(tag: str) -> str:
    """Returns the tag in lowercase, with spaces for punctuation, or "" if it is not a valid tag.

    The symbols +, # and & are kept. Words are separated by one space.

    Example:
      >>> normalize(" Data_Analysis! "), normalize("this is a sentence and not a tag")
      ('data analysis', '')
    """
    text = unicodedata.normalize("NFKC", tag).casefold()
    text = " ".join(re.sub(r"[^\w+#&]|_", " ", text).split())
    if len(text) > _MAX_CHARACTERS or len(text.split()) > _MAX_WORDS:
        return ""
    return text if any(char.isalnum() for char in text) else ""


@dataclasses.dataclass(frozen=True)
class Merged:
    """The result of merge_rare."""

    tags: Tags
    into: dict[str, str]  # removed tag -> the tag that replaces it
    dropped: list[str]  # rare tags that contain no frequent one


def merge_rare(tags: Mapping[str, Sequence[str]], *, alpha: int) -> Merged:
    """Merges tags of fewer than `alpha` prompts into the most specific frequent tag they contain.

    InsTag (Lu et al. 2023) drops infrequent tags and merges tags of the same meaning. Here, tags
    with the same words, in any order and singular or plural, are merged into the most frequent of
    them. A rare tag is merged into the frequent tag that shares the most words (in Chinese,
    characters) and has no others: "haiku poem writing" becomes "poem writing". A tag that contains
    none is dropped.

    Raises:
      ConfigError: alpha is below 1.
    """
    if alpha < 1:
        raise ConfigError(f"alpha={alpha} is not positive.", "merge_rare(alpha)", "use 1 or more.")
    counts = collections.Counter(tag for found in tags.values() for tag in set(found))
    same: dict[tuple[str, ...], str] = {}
    for tag, _ in counts.most_common():
        same.setdefault(_key(tag), tag)
    into = {tag: same[_key(tag)] for tag in counts}
    totals = collections.Counter(
        tag for found in tags.values() for tag in {into[tag] for tag in found}
    )
    frequent = {_key(tag): tag for tag, number in totals.items() if number >= alpha}
    last = {
        tag: tag if totals[tag] >= alpha else _contained(tag, frequent, totals) for tag in totals
    }
    into = {tag: last[other] for tag, other in into.items()}
    merged = {
        prompt: list(dict.fromkeys(new for tag in found if (new := into[tag])))
        for prompt, found in tags.items()
    }
    return Merged(
        merged,
        {old: new for old, new in into.items() if new is not None and new != old},
        [tag for tag, new in last.items() if new is None],
    )


def alpha_for(tags: Mapping[str, Sequence[str]], number: int) -> int:
    """Returns the alpha of merge_rare that leaves the number of tags closest to `number`.

    The report balances about 6,600 tags (3.2.1). A larger alpha leaves fewer tags; of two that are
    equally close, the smaller one is returned.

    Raises:
      ConfigError: number is below 1.
    """
    if number < 1:
        raise ConfigError(
            f"number={number} is not positive.", "alpha_for(number)", "use 1 or more."
        )
    counts = collections.Counter(tag for found in tags.values() for tag in set(found))

    def left(alpha: int) -> int:
        merged = merge_rare(tags, alpha=alpha).tags.values()
        return len({tag for found in merged for tag in found})

    low, high = 1, sum(counts.values()) + 1
    while low < high:  # the smallest alpha with at most `number` tags
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= number else (middle + 1, high)
    return min((max(1, low - 1), low), key=lambda alpha: (abs(left(alpha) - number), alpha))


def tag_all(
    tagger: Tagger,
    prompts: Sequence[str],
    file: AppendOnly,
    *,
    batch: int,
    progress: Callable[[int], object] = lambda number: None,
) -> None:
    """Tags the prompts that are not in the file yet and appends them, `batch` at a time.

    Args:
      progress: receives the number of newly finished prompts.

    Raises:
      DataError: the file contains prompts that are not in `prompts`.
    """
    done = rows_to_tags(file.rows, prompts, str(file.path))
    progress(len(done))
    left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in done]
    for start in range(0, len(left), batch):
        part = left[start : start + batch]
        for prompt, found in zip(part, tagger(part), strict=True):
            file.add({"prompt": prompt, "tags": list(found)})
        progress(len(part))


def read_tags(path: str | os.PathLike, prompts: Collection[str], counts: Counts) -> Tags:
    """Reads the tags of all prompts, in order; a prompt without tags gets [] and is counted.

    Raises:
      DataError: the file is missing or corrupted, or contains prompts that are not in `prompts`.
    """
    found = rows_to_tags((row for _, row in read_rows(path)), prompts, str(path))
    for prompt in prompts:
        if found.get(prompt):
            counts.kept += 1
        else:
            counts.skip(
                "without tags" if prompt in found else "not in the tag file", repr(prompt[:60])
            )
    return {prompt: found.get(prompt, []) for prompt in prompts}


def rows_to_tags(rows: Iterable[dict[str, Any]], prompts: Collection[str], where: str) -> Tags:
    """Converts the rows of a tag file to a dict.

    Raises:
      DataError: a row has another format, two rows of a prompt differ, or a prompt is unknown.
    """
    known, tags, unknown = set(prompts), {}, []
    for number, row in enumerate(rows, 1):
        prompt, found = row.get("prompt"), row.get("tags")
        if (
            not isinstance(prompt, str)
            or not isinstance(found, list)
            or not all(isinstance(tag, str) for tag in found)
        ):
            raise DataError(
                f"{str(row)[:60]!r} is not a prompt with a list of tags.",
                f"{where}, row {number}",
                'use {"prompt": ..., "tags": [...]}.',
            )
        found = [_FORMER_NAMES.get(tag, tag) for tag in found]
        if tags.setdefault(prompt, found) != found:
            raise DataError(
                f"the prompt {prompt[:60]!r} occurs twice, with different tags.",
                f"{where}, row {number}",
                "delete one of them.",
            )
        if prompt not in known:
            unknown.append(prompt)
    if unknown:
        named = "; ".join(repr(prompt[:60]) for prompt in unknown[:_MAX_NAMED])
        raise DataError(
            f"{len(unknown)} of the {len(tags)} prompts in this file are not among the "
            f"{len(known)} in --prompts: {named}.",
            where,
            "pass the prompt files that it was made from as --prompts, or use another tag file.",
        )
    return tags


def _key(tag: str) -> tuple[str, ...]:
    """Returns the sorted words of a tag in the singular."""
    return tuple(
        sorted(
            word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word
            for word in tag.split()
        )
    )


def _contained(
    tag: str, frequent: Mapping[tuple[str, ...], str], totals: Mapping[str, int]
) -> str | None:
    """Returns the frequent tag with the most words of `tag` (in Chinese, the longest substring)."""
    words = _key(tag)
    for size in range(len(words) - 1, 0, -1):
        found = [frequent[part] for part in itertools.combinations(words, size) if part in frequent]
        if found:
            return max(found, key=lambda other: (totals[other], other))
    if not tag.isascii():
        for size in range(len(tag) - 1, 1, -1):
            found = [
                frequent[(tag[start : start + size],)]
                for start in range(len(tag) - size + 1)
                if (tag[start : start + size],) in frequent
            ]
            if found:
                return max(found, key=lambda other: (totals[other], other))
    return None
