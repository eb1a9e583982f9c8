"""What the readers of chat data make of a row: what the model sees, and what it is trained on."""

import functools
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from qwen_jax.data.chat import sft_rows
from qwen_jax.data.chat.conversations import Conversation, Counts, read_conversations
from qwen_jax.data.chat.pairs import read_pairs
from qwen_jax.data.chat.prompts import read_prompt_turns
from qwen_jax.data.chat.render import for_template
from qwen_jax.errors import DataError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template import training

BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})
READERS = {"sft": read_conversations, "pairs": read_pairs, "prompt": read_prompt_turns}
GOOD = {"prompt": "?", "chosen": "a", "rejected": "b", "completion": "a"}  # usable by each reader


def outcome(folder: pathlib.Path, kind: str, row: dict[str, Any]) -> tuple[dict[str, Any], Counts]:
    """Reads one row in a file with a good one.

    Returns:
      {"turns": ...}, {"prompt": ..., ["chosen", "rejected"]}, {"skip": reason} or
      {"refuse": error}, and the counts.
    """
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row, GOOD)), encoding="utf-8")
    counts = Counts()
    try:
        items = list(READERS[kind]([path], counts))
    except DataError as error:
        return {"refuse": str(error)}, counts
    if counts.skipped:
        (reason,) = counts.skipped
        assert f"skipped: {reason} (first: {path} line 1)" in str(counts)
        return {"skip": reason}, counts
    assert counts.kept == len(items) == 2
    item: Any = items[0]
    if kind == "sft":
        return {"turns": _trained(item)}, counts
    if kind == "prompt":
        return {"prompt": [list(turn) for turn in item[1]]}, counts
    turns = [list(turn) for turn in item.prompt]
    return {"prompt": turns, "chosen": item.chosen, "rejected": item.rejected}, counts


WRONG = (None, True, 0, -1.5, 10**400, "", "x", "[", [], [1], [[]], [None], {}, {"a": 1})


def malformed(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields each row with each of its values, at any depth, replaced by one of a wrong kind."""
    for row in rows:
        text = json.dumps(row)
        for path in _paths(row):
            for wrong in WRONG:
                changed = json.loads(text)
                parent = functools.reduce(lambda value, key: value[key], path[:-1], changed)
                parent[path[-1]] = wrong
                yield changed


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yields the path of each value within a row."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(inner, (*path, key))


def _trained(conversation: Conversation) -> list[list]:
    """Returns role, content and whether the message is in the loss, which is all or nothing."""
    dialogue = conversation.rendered
    messages, tools = for_template(dialogue.messages, dialogue.tools)
    texts = [""] * len(messages)
    for example, _ in sft_rows._examples(conversation, BYTES, "assistant", {}):
        (found,) = [
            each
            for each in training.examples(BYTES, messages, tools)
            if np.array_equal(each.tokens, example.tokens)
        ]
        for index in range(len(messages)):
            own = found.writer == index
            parts = set(example.weights[own].tolist())
            assert parts in (set(), {0}, {1})
            texts[index] += BYTES.decode(example.tokens[own & (example.weights > 0)])
        assert not example.weights[found.writer < 0].any()
    trained = [bool(text) for text in texts]
    for message, text in zip(messages, texts, strict=True):
        assert message["role"] == "assistant" or not text
        assert not text or message["content"] in text
    added = len(conversation.turns) - len(messages)  # a system turn that describes tools
    return [
        [role, content, flag]
        for (role, content), flag in zip(conversation.turns, [False] * added + trained, strict=True)
    ]
