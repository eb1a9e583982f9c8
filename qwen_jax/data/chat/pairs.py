"""Reads preference pairs: HH, DPO-style JSON, SHP. Report: 3.2.1.

A pair is two sequences with the same prompt, the chosen one first. Unusable rows are skipped and
counted by reason, as in conversations.py.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from qwen_jax.data.chat.conversations import Counts, Skipped, Turn, check_turns, turns_of
from qwen_jax.errors import DataError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import PairBatch
from qwen_jax.utils.jsonl import read_rows

_HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two responses to one prompt."""

    prompt: tuple[Turn, ...]  # the last turn is the user's
    chosen: str
    rejected: str
    where: str  # file and row


def read_pairs(paths: Iterable[str | os.PathLike], counts: Counts) -> Iterator[Pair]:
    """Yields the pairs of .json and .jsonl files (also .gz); counts skipped rows in `counts`.

    The keys of a row determine its format:
      "chosen" and "rejected" as full dialogues in HH's form;
      "chosen" and "rejected" as responses (text or a turn) to "conversations", "messages",
        "instruction" or "prompt";
      "history", "human_ref_A", "human_ref_B", "labels" (SHP).

    Raises:
      DataError: a file is missing, corrupted or in an unknown format, or has no usable row.
    """
    for path in paths:
        before = counts.kept
        for where, row in read_rows(path):
            try:
                pair = _pair(row, where)
            except Skipped as reason:
                counts.skip(str(reason), where)
                continue
            counts.kept += 1
            yield pair
        if counts.kept == before:
            raise DataError(
                f"no usable pairs: {counts}.",
                str(path),
                "fix the rows; the first row with each problem is listed.",
            )


def _pair(row: dict[str, Any], where: str) -> Pair:
    if "human_ref_A" in row:
        responses = (row["human_ref_A"], row.get("human_ref_B"))
        if row.get("labels") not in (0, 1):
            raise Skipped("the label is neither 0 nor 1")
        chosen, rejected = responses if row["labels"] == 1 else responses[::-1]
        turns = [("user", row.get("history"))]
    elif "chosen" not in row or "rejected" not in row:
        raise DataError(
            f"unknown format: the row has the keys {', '.join(map(str, row))}.",
            where,
            "use chosen and rejected, or SHP's history, human_ref_A, human_ref_B and labels.",
        )
    elif isinstance(row["chosen"], str) and row["chosen"].lstrip().startswith("Human:"):
        return _hh(row, where)
    else:
        chosen, rejected = (_response(row[key]) for key in ("chosen", "rejected"))
        if "prompt" in row and isinstance(row["prompt"], str):
            turns = [("user", row["prompt"])]
        else:
            turns = turns_of(
                row if "output" in row or "instruction" not in row else row | {"output": ""}, where
            )
            while turns and turns[-1][0] == "assistant":
                turns.pop()
    return _checked(turns, chosen, rejected, where)


def _hh(row: dict[str, Any], where: str) -> Pair:
    """Parses two dialogues that differ only in the last response."""
    sides = []
    for key in ("chosen", "rejected"):
        text = "\n\n" + str(row[key]).lstrip()
        parts = _HH_TURN.split(text)[1:]
        sides.append(
            [
                (_HH_ROLES[role], text.strip())
                for role, text in zip(parts[::2], parts[1::2], strict=True)
            ]
        )
    if any(not side or side[-1][0] != "assistant" for side in sides):
        raise Skipped("no assistant turn")
    if sides[0][:-1] != sides[1][:-1]:
        raise Skipped("the dialogues differ before the last response")
    return _checked(sides[0][:-1], sides[0][-1][1], sides[1][-1][1], where)


def _checked(turns: list[tuple[str, Any]], chosen: Any, rejected: Any, where: str) -> Pair:
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise Skipped("a response is not text")
    if not chosen.strip() or not rejected.strip():
        raise Skipped("an empty response")
    if chosen == rejected:
        raise Skipped("chosen and rejected are equal")
    if not all(isinstance(text, str) for _, text in turns):
        raise Skipped("a turn without text")
    return Pair(check_turns([*turns, ("assistant", chosen)])[:-1], chosen, rejected, where)


def _response(value: Any) -> Any:
    """Returns the text of a response, which is a text, a turn, or a list of turns (the last)."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        return value.get("content", value.get("value"))
    return value


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
