"""Reads preference pairs: TRL's and OpenAI's, HH, SHP, summaries, PRM800K. Report: 3.2.1.

A pair is two sequences with the same prompt, the chosen one first. Unusable rows are skipped and
counted by reason, as in conversations.py.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from qwen_jax.data.chat import comparisons
from qwen_jax.data.chat.conversations import check_turns
from qwen_jax.data.chat.dialogue import (
    Dialogue,
    is_transcript,
    join,
    read_dialogue,
    read_transcript,
    with_context,
)
from qwen_jax.data.chat.messages import Message, read_messages
from qwen_jax.data.chat.render import Turn, render
from qwen_jax.data.chat.rows import Counts, Fields, Skipped, read_usable, unknown_format
from qwen_jax.errors import DataError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import PairBatch


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two responses to one prompt."""

    prompt: tuple[Turn, ...]  # the last turn is the user's or a tool's
    chosen: str
    rejected: str
    where: str  # file and row


def read_pairs(paths: Iterable[str | os.PathLike], counts: Counts) -> Iterator[Pair]:
    """Yields the pairs of .json and .jsonl files (also .gz); counts skipped rows in `counts`.

    The keys of a row determine its format:
      "chosen" and "rejected" (OpenAI: "preferred_output" and "non_preferred_output") as responses
        (text or a turn), or as dialogues that agree up to the last response (turns, or HH's text);
        next to them "prompt", "messages", "conversations", "instruction", ...;
      "history", "human_ref_A", "human_ref_B", "labels" (SHP);
      "info", "summaries", "choice" (OpenAI's comparisons of summaries);
      "question" and "label" with steps (PRM800K), which may give several pairs.
    The row's "system", "tools" and "history" belong to the prompt. docs/guides/chat_data.md lists
    all keys.

    Raises:
      DataError: a file is missing, corrupted or in an unknown format, or has no usable row.
    """
    return read_usable(paths, counts, "pairs", parse_pairs)


def parse_pairs(fields: Fields, row: dict[str, Any]) -> list[Pair]:
    """Returns the pairs of one row.

    Raises:
      DataError: the row has an unknown format.
      Skipped: the row is unusable.
    """
    if "human_ref_A" in fields:
        found = [comparisons.shp(fields)]
    elif "summaries" in fields and "choice" in row:
        found = [comparisons.summaries(fields)]
    elif isinstance(row.get("label"), dict) and isinstance(row.get("question"), dict):
        found = comparisons.prm800k(fields)
    else:
        return [_pair(fields, row)]
    return [
        _checked(with_context(fields, [Message("user", prompt)]), chosen, rejected, fields.where)
        for prompt, chosen, rejected in found
    ]


def _pair(fields: Fields, row: dict[str, Any]) -> Pair:
    """Reads two responses, or two dialogues, and what stands next to them."""
    if "preferred_output" in fields and "non_preferred_output" in row:
        keys = ("preferred_output", "non_preferred_output")
        given = fields.take_if("input", dict)
        outer = fields.inner("input", given) if given else fields
    elif "chosen" in row and "rejected" in row:
        keys, outer = ("chosen", "rejected"), fields
    else:
        raise unknown_format(
            row,
            fields.where,
            "use chosen and rejected, or SHP's history, human_ref_A, human_ref_B and labels.",
        )
    values = [fields.take(key) for key in keys]
    transcripts = any(map(is_transcript, values))
    sides = [
        read_transcript(str(value)) if transcripts else _side(value, fields, key)
        for key, value in zip(keys, values, strict=True)
    ]
    for side in sides:
        if not any(message.role == "assistant" for message in side):
            raise Skipped("no assistant turn")
        if side[-1].role != "assistant":
            raise Skipped("a dialogue does not end with an answer")
        if side[-1].trained is False:
            raise Skipped("a response is marked not to be trained on")
    before = [side[:-1] for side in sides if side[:-1]]
    if len(before) == 2 and before[0] != before[1]:
        raise Skipped("the dialogues differ before the last response")
    context = read_dialogue(outer, answer=False)
    messages = list(context.messages)
    while messages and messages[-1].role == "assistant":
        if messages.pop() not in (sides[0][-1], sides[1][-1]):
            fields.change("an answer next to chosen and rejected left out")
    prompt = Dialogue(tuple(join(messages, before[0] if before else [])), context.tools)
    chosen, rejected = (render([side[-1]])[0][1] for side in sides)
    return _checked(prompt, chosen, rejected, fields.where)


def _side(value: Any, fields: Fields, key: str) -> list[Message]:
    """Returns the messages of a response, which is a text, a turn, or a list of turns."""
    if isinstance(value, str):
        return [Message("assistant", value)]
    if isinstance(value, dict):
        return read_messages([value], fields, key, role="assistant")
    if not isinstance(value, list) or not value:
        raise Skipped("a response is not text")
    return read_messages(value, fields, key, role="assistant" if len(value) == 1 else None)


def _checked(prompt: Dialogue, chosen: Any, rejected: Any, where: str) -> Pair:
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise Skipped("a response is not text")
    if not chosen.strip() or not rejected.strip():
        raise Skipped("an empty response")
    if chosen == rejected:
        raise Skipped("chosen and rejected are equal")
    if not all(isinstance(message.text, str) for message in prompt.messages):
        raise Skipped("a turn without text")
    turns = render(prompt.messages, prompt.tools)
    return Pair(check_turns([*turns, ("assistant", chosen)])[:-1], chosen, rejected, where)


class PairRows:
    """Pairs as rows of a PairBatch: [2, T] arrays, the chosen response first."""

    def __init__(
        self, pairs: Iterable[Pair], tokenizer: Tokenizer, *, context_length: int, counts: Counts
    ):
        """
        Args:
          context_length: T. A prompt that is too long is truncated on the left, because the reward
            depends on the response and its end. A pair is skipped if a response does not fit.

        Raises:
          DataError: no pair remains.
        """
        self._length, self._rows = context_length, []
        for pair in pairs:
            sides = [_encode(pair, text, tokenizer) for text in (pair.chosen, pair.rejected)]
            longest = max(len(tokens) - start for tokens, start in sides)
            if longest >= context_length:
                counts.kept -= 1
                counts.skip(f"a response of {context_length} tokens or more", pair.where)
                continue
            excess = max(len(tokens) for tokens, _ in sides) - context_length
            if excess > 0:
                counts.change(f"prompt truncated to fit {context_length} tokens", pair.where)
                sides = [(tokens[excess:], start - excess) for tokens, start in sides]
            self._rows.append(sides)
        if not self._rows:
            raise DataError(
                "there are no pairs to train on.", "data", f"check the skipped rows: {counts}."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PairBatch:
        if not 0 <= index < len(self._rows):
            raise IndexError(index)
        batch = self.padding
        batch.weights[...] = 1
        for side, (tokens, start) in enumerate(self._rows[index]):
            n = len(tokens)
            batch.tokens[side, :n] = tokens
            batch.targets[side, : n - 1] = tokens[1:]
            batch.response_weights[side, start - 1 : n - 1] = 1
            batch.segment_ids[side, :n] = 1
            batch.end[side] = n - 1
        return batch

    @property
    def padding(self) -> PairBatch:
        """An empty pair of weight 0."""
        return empty_pair(self._length)

    def __repr__(self) -> str:
        return f"PairRows({len(self)} of {self._length})"


def empty_pair(length: int) -> PairBatch:
    """Returns an empty row of a PairBatch, of weight 0, with room for `length` tokens a side."""
    return PairBatch(
        tokens=np.zeros((2, length), np.int32),
        targets=np.zeros((2, length), np.int32),
        response_weights=np.zeros((2, length), np.float32),
        segment_ids=np.zeros((2, length), np.int32),
        end=np.zeros(2, np.int32),
        weights=np.zeros((), np.float32),
    )


def _encode(pair: Pair, response: str, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """Returns the tokens up to the response's <|im_end|>, and the index of its first token.

    The reward is read at <|im_end|>.
    """
    rendered = chatml.render([*pair.prompt, ("assistant", response)], tokenizer)
    span = rendered.spans[-1]
    return rendered.tokens[: span.end], span.start
