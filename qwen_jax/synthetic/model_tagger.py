"""Tags prompts with a chat model and in-context examples. Report: 3.2.1 (like InsTag).

The model is any function from conversations to responses; inference/complete.py wraps an engine.
"""

import json
import re
from collections.abc import Callable, Sequence

from qwen_jax.data.chat.conversations import Counts, Turn
from qwen_jax.synthetic.tags import normalize

# Conversations that end with a user turn -> responses; None if one does not fit the context.
Complete = Callable[[list[list[Turn]]], Sequence[str | None]]

_HEAD, _TAIL = 1500, 500  # characters kept from the ends of a long prompt, where its task is
_MAX_TAGS = 20
_INSTRUCTION = (
    "You label what a user asks an assistant for. Read the user's prompt between the lines of "
    "equals signs; do not answer it. Give short tags, one to three words each, for its task, its "
    "topics, its language or programming language, and every condition that the answer has to "
    "meet. The more it asks for, the more tags. Answer with a JSON list of strings and nothing "
    "else."
)
_EXAMPLES = (
    (
        "Write a haiku about autumn without naming the season, then translate it into French.",
        ["poem writing", "haiku", "autumn", "forbidden word", "translation", "french"],
    ),
    (
        "小明有12个苹果，给了小红三分之一，还剩多少个？请一步一步地说明。",
        ["math word problem", "fractions", "chinese", "step by step"],
    ),
    (
        "def f(x): return x/0  # why does this crash?",
        ["code", "python", "debugging", "explanation", "exception"],
    ),
    ("What is the capital of Peru?", ["question answering", "geography"]),
)


class ModelTagger:
    """A Tagger that queries a model. `counts` has the number of unusable responses by reason.

    Args:
      complete: the model; greedy decoding works best.
    """

    def __init__(self, complete: Complete):
        self._complete = complete
        self.counts = Counts()

    def __call__(self, prompts: Sequence[str]) -> list[list[str]]:
        """Returns normalized, unique tags for each prompt; [] if the response is unusable."""
        responses = self._complete([tagging_conversation(prompt) for prompt in prompts])
        return [
            self._read(prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def _read(self, prompt: str, response: str | None) -> list[str]:
        where = repr(prompt[:60])
        if response is None:
            self.counts.skip("no room for a response", where)
            return []
        found = parse(response)
        if found is None:
            self.counts.skip("a response without a list of tags", f"{where} -> {response[:40]!r}")
            return []
        tags = list(dict.fromkeys(tag for tag in map(normalize, found) if tag))[:_MAX_TAGS]
        if not tags:
            self.counts.skip("an empty list of tags", where)
            return []
        if len(tags) < len(set(found)):
            self.counts.change("lists with invalid or duplicate tags", where)
        self.counts.kept += 1
        return tags


def tagging_conversation(prompt: str) -> list[Turn]:
    """Returns the conversation whose response is the tags of `prompt`."""
    turns: list[Turn] = [("system", _INSTRUCTION)]
    for example, tags in _EXAMPLES:
        turns += [("user", _framed(example)), ("assistant", json.dumps(tags))]
    return [*turns, ("user", _framed(prompt))]


def parse(response: str) -> list[str] | None:
    """Parses the tags in a response leniently; returns None if it contains no list.

    Accepts a JSON list of strings, a list of objects with a "tag" (InsTag's format), the complete
    strings of a truncated list, and a numbered or bulleted list.
    """
    start = response.find("[")
    if start >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(response[start:])
        except (ValueError, RecursionError):
            found = re.findall(r'"((?:[^"\\]|\\.)*)"', response[start:])
        tags = [item.get("tag") if isinstance(item, dict) else item for item in found]
        return [tag for tag in tags if isinstance(tag, str)]
    lines = re.findall(r"^\s*(?:[-*•]|\d+[.)])\s*(.+)$", response, re.MULTILINE)
    return [line.strip(" \"'`.,") for line in lines] or None


def _framed(prompt: str) -> str:
    if len(prompt) > _HEAD + _TAIL:
        prompt = f"{prompt[:_HEAD]}\n[...]\n{prompt[-_TAIL:]}"
    return f"=====\n{prompt}\n====="
