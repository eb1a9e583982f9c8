"""Tags of prompts: what makes them, what they are called, and the file that keeps them.

A tagger is any function of a list of prompts that returns a list of tags for each: tag_rules.py has
one of patterns, model_tagger.py one that asks a model. Report: 3.2.1.

The file has a line for each prompt: {"prompt": text, "tags": ["algebra", "length limit"]}. The text
of a prompt that is more than one question is that of prompts.text_of.
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

_MAX_WORDS, _MAX_CHARACTERS = 5, 40  # of a tag; what is longer is a sentence
_MAX_NAMED = 3


def normalize(tag: str) -> str:
    """Lower case, signs as spaces (but for c++, c#), one space between words; "" if it is no tag.

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
    """Tags after rare ones were merged."""

    tags: Tags
    into: dict[str, str]  # tag that is gone -> the one in its place
    dropped: list[str]  # rare ones that are like no frequent one


def merge_rare(tags: Mapping[str, Sequence[str]], *, alpha: int) -> Merged:
    """Tags that `alpha` prompts or more have; rarer ones become the most special one they contain.

    InsTag (Lu et al. 2023) drops tags below a frequency and merges those that mean the same. Here
    tags of the same words, plural or not, in any order, are one (the most frequent); a rare one
    becomes the frequent tag with the most words (or, in Chinese, characters) that are all its own:
    "haiku poem writing" becomes "poem writing". What contains none is dropped.

    Raises:
      ConfigError: alpha below 1.
    """
    if alpha < 1:
        raise ConfigError(f"alpha={alpha}.", "merge_rare(alpha)", "use 1 or more.")
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


def tag_all(
    tagger: Tagger,
    prompts: Sequence[str],
    file: AppendOnly,
    *,
    batch: int,
    progress: Callable[[int], object] = lambda number: None,
) -> None:
    """Tags the prompts that have no line in the file yet, and appends them, `batch` at a time.

    Raises:
      DataError: the file names prompts that are not among these.
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
    """The tags of all prompts, in their order; one without tags has none, and is in `counts`.

    Raises:
      DataError: the file is missing or damaged, or names prompts that are not among these.
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
    """The rows of a tag file as a dict.

    Raises:
      DataError: a row of another form, a prompt with two different lines, or unknown prompts.
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
                f"{str(row)[:60]!r} is no prompt with a list of tags.",
                f"{where}, row {number}",
                'write {"prompt": ..., "tags": [...]}.',
            )
        if tags.setdefault(prompt, found) != found:
            raise DataError(
                f"two different lines for {prompt[:60]!r}.",
                f"{where}, row {number}",
                "delete one of them.",
            )
        if prompt not in known:
            unknown.append(prompt)
    if unknown:
        named = "; ".join(repr(prompt[:60]) for prompt in unknown[:_MAX_NAMED])
        raise DataError(
            f"{len(unknown)} of its {len(tags)} prompts are not among the "
            f"{len(known)} given: {named}.",
            where,
            "name the prompt files that it was made from, or another tag file.",
        )
    return tags


def _key(tag: str) -> tuple[str, ...]:
    """Its words without order and plural."""
    return tuple(
        sorted(
            word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word
            for word in tag.split()
        )
    )


def _contained(
    tag: str, frequent: Mapping[tuple[str, ...], str], totals: Mapping[str, int]
) -> str | None:
    """The frequent tag of the most words of `tag`, or of its longest piece in Chinese."""
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
