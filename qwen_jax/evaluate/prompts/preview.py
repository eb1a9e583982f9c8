"""The first prompt of a task, as the model reads it, with its tokens, choices or stop strings."""

import sys
from collections.abc import Iterator, Sequence

from qwen_jax.evaluate.generation import Prompt
from qwen_jax.evaluate.likelihood import Question
from qwen_jax.evaluate.prompts.marked import Marker, shown
from qwen_jax.evaluate.prompts.questions import Work
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template.tokens import stop_ids

_BOUNDARY = "║"  # between the prompt and a choice
_BEFORE = 3  # tokens of the prompt that are shown before a choice
_BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})


def preview(work: Work, tokenizer: Tokenizer | None, *, color: bool) -> str:
    """Returns the first prompt of a task: its tokens, and what follows it.

    Args:
      tokenizer: None: only the text is shown.
      color: whether to use colors of a terminal (prompts/marked.py).
    """
    task, example = work.task, work.examples[0]
    header = (
        f"=== {task.key}: protocol {task.protocol}, {task.num_shots} shots, example {example.id}"
    )
    # No model here, so no prompt is too long; text is what bytes as tokens decode to.
    item = work.encode(example, tokenizer or _BYTES, sys.maxsize)
    tokens = item.request.prompt if isinstance(item, Prompt) else item.parts[0].context
    if tokenizer is None:
        text = _BYTES.decode(tokens) if task.chat else item.prompt
        lines = [shown(text), "tokens are not shown: pass --tokenizer or --checkpoint"]
        after = [f"choice {choice!r}" for choice in getattr(item, "choices", ())]
    else:
        marker = Marker(tokenizer, color=color)
        lines = [marker.show(tokens), f"the prompt has {_count(tokens)}"]
        after = list(_choices(item, marker)) if isinstance(item, Question) else []
    return "\n".join([header, *lines, *after, *_end(work, tokenizer or _BYTES)])


def _choices(item: Question, marker: Marker) -> Iterator[str]:
    """Yields the end of the prompt, the boundary and the tokens of each choice."""
    for part in item.parts:
        end, first = marker.last_line(part.context)[-_BEFORE:], len(part.context)
        before = marker.show(end, first=first - len(end))
        note = ", encoded separately: tokens would merge" if part.separate else ""
        choice = marker.show(part.continuation, first=first)
        yield f"{before}{_BOUNDARY}{choice}  ({_count(part.continuation)}{note})"


def _count(tokens: Sequence[int]) -> str:
    return f"{len(tokens):,} token" + "s" * (len(tokens) != 1)


def _end(work: Work, tokenizer: Tokenizer) -> Iterator[str]:
    settings = work.task.generation
    if settings is not None:
        ids = stop_ids(tokenizer) if work.task.chat else (tokenizer.end_of_text,)
        ends = " or ".join(tokenizer.decode([one]) for one in ids)
        strings = ", ".join(map(repr, settings.stops)) or "none"
        yield f"the completion ends at {ends}, or after {settings.max_new_tokens:,} tokens"
        yield f"stop strings: {strings}"
