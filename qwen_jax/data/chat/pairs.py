"""Pairs of answers, one preferred: HH, DPO-style JSON, SHP-like scores. Report: 3.2.1.

A pair is two rows of equal prompts: the preferred answer first. What is unusable is counted by its
reason, as with conversations.
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
    """Two answers to the same turns."""

    prompt: tuple[Turn, ...]  # ends with the user
    chosen: str
    rejected: str
    place: str


def read_pairs(paths: Iterable[str | os.PathLike], counts: Counts) -> Iterator[Pair]:
    """The pairs of .json and .jsonl files (also .gz); what is skipped is in `counts`.

    Formats, by a row's keys: "chosen" and "rejected" as whole dialogues in HH's form; the same as
    answers (text or a turn) to "conversations", "messages", "instruction" or "prompt"; "history",
    "human_ref_A", "human_ref_B", "labels" (SHP).

    Raises:
      DataError: a file is missing, damaged or of no known format, or none of its rows is usable.
    """
    for path in paths:
        before = counts.kept
        for place, row in read_rows(path):
            try:
                pair = _pair(row, place)
            except Skipped as reason:
                counts.skip(str(reason), place)
                continue
            counts.kept += 1
            yield pair
        if counts.kept == before:
            raise DataError(
                f"no pair can be used: {counts}.", str(path), "look at the first row that is named."
            )


def _pair(row: dict[str, Any], place: str) -> Pair:
    if "human_ref_A" in row:
        answers = (row["human_ref_A"], row.get("human_ref_B"))
        if row.get("labels") not in (0, 1):
            raise Skipped("a label that is neither 0 nor 1")
        chosen, rejected = answers if row["labels"] == 1 else answers[::-1]
        turns = [("user", row.get("history"))]
    elif "chosen" not in row or "rejected" not in row:
        raise DataError(
            f"no known format; the row has {', '.join(map(str, row))}.",
            place,
            "use chosen and rejected, or SHP's history, human_ref_A, human_ref_B.",
        )
    elif isinstance(row["chosen"], str) and row["chosen"].lstrip().startswith("Human:"):
        return _hh(row, place)
    else:
        chosen, rejected = (_answer(row[key]) for key in ("chosen", "rejected"))
        if "prompt" in row and isinstance(row["prompt"], str):
            turns = [("user", row["prompt"])]
        else:
            turns = turns_of(
                row if "output" in row or "instruction" not in row else row | {"output": ""}, place
            )
            while turns and turns[-1][0] == "assistant":
                turns.pop()
    return _checked(turns, chosen, rejected, place)


def _hh(row: dict[str, Any], place: str) -> Pair:
    """Two dialogues that agree up to the last answer."""
    sides = []
    for key in ("chosen", "rejected"):
        text = "\n\n" + str(row[key]).lstrip()
        parts = _HH_TURN.split(text)[1:]
        sides.append(
            [
                (_HH_ROLES[role], words.strip())
                for role, words in zip(parts[::2], parts[1::2], strict=True)
            ]
        )
    if any(not side or side[-1][0] != "assistant" for side in sides):
        raise Skipped("without an assistant's turn")
    if sides[0][:-1] != sides[1][:-1]:
        raise Skipped("two dialogues that differ before the last answer")
    return _checked(sides[0][:-1], sides[0][-1][1], sides[1][-1][1], place)


def _checked(turns: list[tuple[str, Any]], chosen: Any, rejected: Any, place: str) -> Pair:
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise Skipped("an answer that is not text")
    if not chosen.strip() or not rejected.strip():
        raise Skipped("an empty answer")
    if chosen == rejected:
        raise Skipped("chosen and rejected are equal")
    if not all(isinstance(text, str) for _, text in turns):
        raise Skipped("a turn without text")
    return Pair(check_turns([*turns, ("assistant", chosen)])[:-1], chosen, rejected, place)


def _answer(value: Any) -> Any:
    """The text of an answer that is text, a turn, or a list whose last one is."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        return value.get("content", value.get("value"))
    return value


class PairRows:
    """Pairs as rows of a PairBatch: [2, T] arrays, the preferred answer first."""

    def __init__(
        self, pairs: Iterable[Pair], tokenizer: Tokenizer, *, context_length: int, counts: Counts
    ):
        """
        Args:
          context_length: T. Of a prompt that is too long the beginning is cut, for the answer and
            its end are what is judged; a pair with an answer that is too long is dropped.

        Raises:
          DataError: nothing is left.
        """
        self._length, self._rows = context_length, []
        for pair in pairs:
            sides = [_encode(pair, answer, tokenizer) for answer in (pair.chosen, pair.rejected)]
            longest = max(len(tokens) - start for tokens, start in sides)
            if longest >= context_length:
                counts.kept -= 1
                counts.skip(f"an answer of {context_length} tokens or more", pair.place)
                continue
            cut = max(len(tokens) for tokens, _ in sides) - context_length
            if cut > 0:
                counts.change(f"prompt cut on the left to fit {context_length} tokens", pair.place)
                sides = [(tokens[cut:], start - cut) for tokens, start in sides]
            self._rows.append(sides)
        if not self._rows:
            raise DataError(
                "there is nothing to learn from.", "data", f"look at what was skipped: {counts}."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> PairBatch:
        if not 0 <= row < len(self._rows):
            raise IndexError(row)
        batch = self.padding
        batch.weights[...] = 1
        for side, (tokens, start) in enumerate(self._rows[row]):
            n = len(tokens)
            batch.tokens[side, :n] = tokens
            batch.targets[side, : n - 1] = tokens[1:]
            batch.answer_weights[side, start - 1 : n - 1] = 1
            batch.segment_ids[side, :n] = 1
            batch.end[side] = n - 1
        return batch

    @property
    def padding(self) -> PairBatch:
        """A pair of nothing."""
        return empty_pair(self._length)

    def __repr__(self) -> str:
        return f"PairRows({len(self)} of {self._length})"


def empty_pair(length: int) -> PairBatch:
    """One row of a PairBatch, for dialogues of at most `length` tokens: a pair of nothing."""
    return PairBatch(
        tokens=np.zeros((2, length), np.int32),
        targets=np.zeros((2, length), np.int32),
        answer_weights=np.zeros((2, length), np.float32),
        segment_ids=np.zeros((2, length), np.int32),
        end=np.zeros(2, np.int32),
        weights=np.zeros((), np.float32),
    )


def _encode(pair: Pair, answer: str, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """Tokens up to the answer's <|im_end|>, where the reward is read,
    and where the answer starts."""
    rendered = chatml.render([*pair.prompt, ("assistant", answer)], tokenizer)
    span = rendered.spans[-1]
    return rendered.tokens[: span.end], span.start
