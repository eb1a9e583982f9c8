"""Reads preference pairs: TRL's and OpenAI's, HH, SHP, summaries, PRM800K. Report: 3.2.1.

A pair is two sequences with the same prompt, the chosen one first. Unusable rows are skipped and
counted by reason, as in conversations.py.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from qwen_jax.data.chat import comparisons
from qwen_jax.data.chat.conversations import check_turns
from qwen_jax.data.chat.dialogue import (
    Dialogue,
    check_text_only,
    is_transcript,
    join,
    read_dialogue,
    read_transcript,
    with_context,
)
from qwen_jax.data.chat.messages import Message, read_messages
from qwen_jax.data.chat.render import Turn, check_template, for_template, render
from qwen_jax.data.chat.rows import Counts, Fields, Skipped, read_usable, unknown_format
from qwen_jax.errors import DataError, TokenizerError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import training
from qwen_jax.tokenizer.template.tokens import check_variables
from qwen_jax.types import PairBatch

_DIFFER = "the dialogues differ before the last response"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two responses to one prompt. Turns are plain text, without a template."""

    prompt: tuple[Turn, ...]  # the last turn is the user's or a tool's
    chosen: str
    rejected: str
    where: str  # file and row
    # What leads to each response after the prompt: calls and their results. They belong to it, so
    # its calls are in the loss, and the results, which the model did not write, are not.
    chosen_steps: tuple[Turn, ...] = ()
    rejected_steps: tuple[Turn, ...] = ()
    # What the template renders: the prompt and the messages of each response. None: the turns.
    dialogue: Dialogue | None = None
    responses: tuple[tuple[Message, ...], ...] = ()

    @property
    def rendered(self) -> tuple[Dialogue, tuple[tuple[Message, ...], ...]]:
        """What the template renders: the prompt, the chosen and the rejected response."""
        if self.dialogue is not None:
            return self.dialogue, self.responses
        sides = (
            (*self.chosen_steps, ("assistant", self.chosen)),
            (*self.rejected_steps, ("assistant", self.rejected)),
        )
        prompt, *found = (tuple(Message(*turn) for turn in of) for of in (self.prompt, *sides))
        return Dialogue(prompt), tuple(found)


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
    pairs = []
    for prompt, *texts in found:
        if not all(isinstance(text, str) for text in texts):
            raise Skipped("a response is not text")
        sides = [[Message("assistant", text)] for text in texts]
        pairs.append(_checked(with_context(fields, [Message("user", prompt)]), sides, fields.where))
    return pairs


def _pair(fields: Fields, row: dict[str, Any]) -> Pair:
    """Reads two responses, or two dialogues, and what stands next to them."""
    both = [key for key in ("chosen", "preferred_output") if key in fields]
    if len(both) == 2:
        raise Skipped(f"{' and '.join(both)}: two pairs in one row")
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
            "use prompt, chosen and rejected; docs/guides/chat_data.md lists all. A file of "
            "conversations or prompts is not one of pairs.",
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
    context = read_dialogue(outer, answer=False)
    messages, responses = _split(list(context.messages), sides, fields)
    if any(m.trained is False for side in responses for m in side if m.role == "assistant"):
        raise Skipped("a response is marked not to be trained on")
    return _checked(dataclasses.replace(context, messages=tuple(messages)), responses, fields.where)


def _split(
    messages: list[Message], sides: list[list[Message]], fields: Fields
) -> tuple[list[Message], list[list[Message]]]:
    """Returns the prompt of two dialogues, and the responses to it.

    A response begins where the dialogues differ, which is after the last turn of the user: it may
    have calls and their results before its text.

    Args:
      messages: the prompt that stands next to the dialogues; may have an answer.
    """
    begin = [_after_user(side) for side in sides]
    before = [side[:n] for side, n in zip(sides, begin, strict=True)]
    responses = [side[n:] for side, n in zip(sides, begin, strict=True)]
    if all(before) and before[0] != before[1]:
        raise Skipped(_DIFFER)
    while messages and messages[-1].role == "assistant":
        answer = messages.pop()
        if answer not in (responses[0][-1], responses[1][-1]):
            fields.change("an answer next to chosen and rejected left out")
    steps = [response[:-1] for response in responses]
    repeated = next((each for each in steps if each and messages[-len(each) :] == each), [])
    messages = messages[: len(messages) - len(repeated)]
    prompt = join(messages, before[0] or before[1])
    if messages and not all(before) and prompt[-1:] != messages[-1:]:
        raise Skipped(_DIFFER)  # one side answers a later turn than the other
    equal = (a == b for a, b in zip(*steps, strict=False))
    common = sum(itertools.takewhile(bool, equal))
    responses = [response[common:] for response in responses]
    if any(response[0].role != "assistant" for response in responses):
        raise Skipped(_DIFFER)  # in the results of one call
    return [*prompt, *steps[0][:common]], responses


def _after_user(side: list[Message]) -> int:
    """Returns the index of the first turn after the last one of the user or the system."""
    return max((n + 1 for n, m in enumerate(side) if m.role in ("user", "system")), default=0)


def _side(value: Any, fields: Fields, key: str) -> list[Message]:
    """Returns the messages of a response, which is a text, a turn, or a list of turns."""
    if isinstance(value, str):
        return [Message("assistant", value)]
    if isinstance(value, dict):
        return read_messages([value], fields, key, role="assistant")
    if not isinstance(value, list) or not value:
        raise Skipped("a response is not text")
    return read_messages(value, fields, key, role="assistant" if len(value) == 1 else None)


def _checked(prompt: Dialogue, responses: list[list[Message]], where: str) -> Pair:
    chosen, rejected = map(render, responses)
    if not chosen[-1][1].strip() or not rejected[-1][1].strip():
        raise Skipped("an empty response")
    if chosen == rejected:
        raise Skipped("chosen and rejected are equal")
    if not all(isinstance(message.text, str) for message in prompt.messages):
        raise Skipped("a turn without text")
    check_text_only([*prompt.messages, *responses[0], *responses[1]])
    turns = render(prompt.messages, prompt.tools)
    for response in (chosen, rejected):
        check_turns([*turns, *response])
    return Pair(
        tuple(turns), chosen[-1][1], rejected[-1][1], where, tuple(chosen[:-1]),
        tuple(rejected[:-1]), prompt, tuple(map(tuple, responses)),
    )  # fmt: skip


class PairRows:
    """Pairs as rows of a PairBatch: [2, T] arrays, the chosen response first."""

    def __init__(
        self,
        pairs: Iterable[Pair],
        tokenizer: Tokenizer,
        *,
        context_length: int,
        counts: Counts,
        variables: Mapping[str, Any] | None = None,
    ):
        """
        Args:
          context_length: T. A prompt that is too long is truncated on the left, because the reward
            depends on the response and its end. A pair is skipped if a response does not fit.
          variables: of the chat template; those of a row come on top.

        Raises:
          DataError: no pair remains.
          TokenizerError: the template is malformed, jinja2 is not installed, or the tokenizer has
            no template for the variables.
        """
        check_variables(tokenizer, variables or {})
        self._length, self._rows = context_length, []
        for pair in pairs:
            try:
                sides = _encode(pair, tokenizer, variables or {})
            except Skipped as reason:
                counts.kept -= 1
                counts.skip(str(reason), pair.where)
                continue
            longest = max(len(tokens) - int(np.argmax(written)) for tokens, written in sides)
            if longest >= context_length:
                counts.kept -= 1
                counts.skip(f"a response of {context_length} tokens or more", pair.where)
                continue
            excess = max(0, *(len(tokens) - context_length for tokens, _ in sides))
            if excess > 0:
                counts.change(f"prompt truncated to fit {context_length} tokens", pair.where)
            self._rows.append([(tokens[excess:], written[excess:]) for tokens, written in sides])
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
        for side, (tokens, written) in enumerate(self._rows[index]):
            n = len(tokens)
            batch.tokens[side, :n] = tokens
            batch.targets[side, : n - 1] = tokens[1:]
            batch.response_weights[side, : n - 1] = written[1:]
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


def _encode(
    pair: Pair, tokenizer: Tokenizer, variables: Mapping[str, Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the tokens of both sides up to the end token, and which the response has written.

    The reward is read at the end token.

    Raises:
      Skipped: the template refuses a side, or would leave out a part of it.
    """
    dialogue, responses = pair.rendered
    sides = []
    for response in responses:
        messages, tools = for_template([*dialogue.messages, *response], dialogue.tools)
        check_template(tokenizer, messages, tools)
        try:
            found = training.response(
                tokenizer,
                messages,
                len(messages) - len(response),
                tools,
                **{**variables, **dialogue.variables},
            )
        except TokenizerError as error:
            raise Skipped(error.what) from None
        sides.append((found.tokens, found.writer >= 0))
    return sides
