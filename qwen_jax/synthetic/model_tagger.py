"""Tags by asking a chat model, with examples in context. Report: 3.2.1 (as InsTag does).

The model is any function from conversations to answers; inference/complete.py makes one of an
engine.
"""

import json
import re
from collections.abc import Callable, Sequence

from qwen_jax.data.chat.conversations import Counts, Turn
from qwen_jax.synthetic.tags import normalize

# Conversations that end with a question -> answers; None where there is no room for one.
Complete = Callable[[list[list[Turn]]], Sequence[str | None]]

_HEAD, _TAIL = 1500, 500  # characters of a long prompt that are shown: the task is at either end
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
    """A Tagger. What it could not use is in `counts`, by reason, with the prompt's beginning.

    Args:
      complete: the model; greedy answers are best.
    """

    def __init__(self, complete: Complete):
        self._complete = complete
        self.counts = Counts()

    def __call__(self, prompts: Sequence[str]) -> list[list[str]]:
        """Normalized tags, each once; none where the answer cannot be used."""
        answers = self._complete([tagging_conversation(prompt) for prompt in prompts])
        return [self._read(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def _read(self, prompt: str, answer: str | None) -> list[str]:
        place = repr(prompt[:60])
        if answer is None:
            self.counts.skip("no room for an answer", place)
            return []
        found = parse(answer)
        if found is None:
            self.counts.skip("an answer without a list of tags", f"{place} -> {answer[:40]!r}")
            return []
        tags = list(dict.fromkeys(tag for tag in map(normalize, found) if tag))[:_MAX_TAGS]
        if not tags:
            self.counts.skip("an empty list of tags", place)
            return []
        if len(tags) < len(set(found)):
            self.counts.change("lists in which some tags are none or alike", place)
        self.counts.kept += 1
        return tags


def tagging_conversation(prompt: str) -> list[Turn]:
    """The conversation whose next answer is the tags of `prompt`."""
    turns: list[Turn] = [("system", _INSTRUCTION)]
    for example, tags in _EXAMPLES:
        turns += [("user", _framed(example)), ("assistant", json.dumps(tags))]
    return [*turns, ("user", _framed(prompt))]


def parse(answer: str) -> list[str] | None:
    """The tags of an answer, read leniently; None if there is no list in it.

    Taken are a JSON list of strings, or of objects with a "tag" as InsTag asks for; the whole
    strings of a list that was cut off; and a numbered or bulleted list.
    """
    start = answer.find("[")
    if start >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(answer[start:])
        except (ValueError, RecursionError):
            found = re.findall(r'"((?:[^"\\]|\\.)*)"', answer[start:])
        tags = [item.get("tag") if isinstance(item, dict) else item for item in found]
        return [tag for tag in tags if isinstance(tag, str)]
    lines = re.findall(r"^\s*(?:[-*•]|\d+[.)])\s*(.+)$", answer, re.MULTILINE)
    return [line.strip(" \"'`.,") for line in lines] or None


def _framed(prompt: str) -> str:
    if len(prompt) > _HEAD + _TAIL:
        prompt = f"{prompt[:_HEAD]}\n[...]\n{prompt[-_TAIL:]}"
    return f"=====\n{prompt}\n====="
