"""Growing conversations: selects the turns that fit into the next prompt.

The format is that of the chat template (tokenizer/template). Report: 3.1.1.
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template.tokens import as_mappings, prompt

# Report, Table 3: with dynamic NTK and LogN, the perplexity of a model trained at 2048 tokens still
# decreases up to 8192 tokens. Without them, the model is unusable at 4096.
_EXTENSION = 4


class Prompt(NamedTuple):
    """The model's prompt, and the number of turns dropped to make it fit."""

    tokens: tuple[int, ...]
    dropped: int  # number of oldest turns dropped; a turn is a user message with its response


def fit(
    messages: Sequence[Any],
    tokenizer: Tokenizer,
    *,
    budget: int,
    variables: Mapping[str, Any] | None = None,
) -> Prompt:
    """Returns the prompt by the chat template; drops the oldest turns if it exceeds `budget`.

    The system message and the last user message, with everything after it, are always kept.

    Args:
      messages: as tokenizer.template.tokens.prompt takes them.
      variables: of the chat template.

    Raises:
      TokenizerError: a message is malformed, or the template refuses the conversation.
      DataError: the system message and the last user message together exceed `budget` tokens.
    """
    messages = as_mappings(messages)
    first = int(messages[0]["role"] == "system")
    turns = [index for index, message in enumerate(messages) if message["role"] == "user"]

    def rest(dropped: int) -> np.ndarray:
        kept = [*messages[:first], *messages[turns[dropped] :]]
        return prompt(tokenizer, kept, **(variables or {}))

    tokens = prompt(tokenizer, messages, **(variables or {}))
    if len(tokens) <= budget:
        return Prompt(tuple(tokens.tolist()), 0)
    dropped = bisect.bisect_left(range(len(turns)), True, key=lambda n: len(rest(n)) <= budget)
    if dropped < len(turns):
        return Prompt(tuple(rest(dropped).tolist()), dropped)
    minimum = len(rest(-1)) if turns else len(tokens)
    raise DataError(
        f"the system message and the last user message need {minimum} tokens, but only {budget} "
        "are available.",
        "messages",
        "shorten them, lower max_new_tokens, or raise the context length.",
    )


def longest_context(config: ModelConfig) -> int:
    """Returns the longest usable context of a model: prompt and new tokens together.

    This is the training length, or four times that with dynamic NTK (report 2.5, Table 3), or what
    YaRN extends it to.
    """
    if config.extension.dynamic_ntk:
        return _EXTENSION * config.context_length
    scaling = config.variant.rope_scaling
    return max(config.context_length, int(scaling.factor * (scaling.original_length or 0)))


def context(config: ModelConfig, requested: int | None) -> tuple[int, str]:
    """Returns the context in tokens, and a phrase that explains the number.

    Args:
      requested: the requested context in tokens; None: the longest usable context.

    Raises:
      ConfigError: fewer than 2 tokens.
    """
    longest, trained = longest_context(config), config.context_length
    if requested is not None and requested < 2:
        raise ConfigError(
            f"a context of {requested} tokens has no room for a prompt and a response.",
            "context",
            f"use 2 to {longest} tokens.",
        )
    tokens = longest if requested is None else requested
    reason = f"trained at {trained:,}"
    if tokens > trained:
        reason += (
            f", extended by {'dynamic NTK' if config.extension.dynamic_ntk else 'YaRN'}"
            if longest > trained
            else ", without dynamic NTK: expect unusable output beyond it"
        )
    if tokens > longest > trained:
        reason += f"; quality drops beyond {longest:,}"
    return tokens, f"{tokens:,} tokens ({reason})"
