"""Conversations that grow: which of their turns fit before the next answer.

The format is tokenizer/chatml.py's. Report: 3.1.1.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer

# Report, Table 3: with dynamic NTK and LogN the perplexity of a model trained at 2048 tokens still
# falls at 8192; without them it is lost at 4096.
_EXTENSION = 4


class Prompt(NamedTuple):
    """What the model is given, and what was left out for it to fit."""

    tokens: tuple[int, ...]
    dropped: int  # turns (a question and its answer), the oldest ones


def fit(messages: Sequence[chatml.Message], tokenizer: Tokenizer, *, budget: int) -> Prompt:
    """The conversation in ChatML, without its oldest turns where it is longer than `budget` tokens.

    The system message always stays, and so does the last question with what follows it.

    Raises:
      TokenizerError: messages of another form.
      DataError: the system message and the last question alone are longer than `budget`.
    """
    tokens = chatml.prompt(messages, tokenizer).tolist()
    if len(tokens) <= budget:
        return Prompt(tuple(tokens), 0)
    spans = chatml.render(messages, tokenizer).spans
    line_end = len(tokenizer.encode("\n"))
    # Where each message starts: the one before it ends in <|im_end|> and a line end.
    starts = [0, *(span.end + line_end for span in spans[:-1])]
    turns = [start for start, span in zip(starts, spans, strict=True) if span.role == "user"]
    system = spans[0].end + line_end
    for dropped, start in enumerate(turns):
        if system + len(tokens) - start <= budget:
            return Prompt((*tokens[:system], *tokens[start:]), dropped)
    least = system + len(tokens) - (turns[-1] if turns else system)
    raise DataError(
        f"the system message and the last question are {least} tokens, and {budget} "
        "are left for them.",
        "messages",
        "shorten them, or ask for fewer new tokens or a larger context.",
    )


def longest_context(config: ModelConfig) -> int:
    """Tokens of a prompt and its answer up to which a model is known to make sense.

    The training length, or four times as much with dynamic NTK. Report: 2.5, Table 3.
    """
    return config.context_length * (_EXTENSION if config.extension.dynamic_ntk else 1)


def context(config: ModelConfig, asked: int | None) -> tuple[int, str]:
    """The tokens of a row, and a sentence that says where the number comes from.

    Args:
      asked: a number of tokens; None: the longest that makes sense.

    Raises:
      ConfigError: fewer than 2 tokens.
    """
    longest, trained = longest_context(config), config.context_length
    if asked is not None and asked < 2:
        raise ConfigError(
            f"a context of {asked} tokens holds no prompt and answer.",
            "context",
            f"use up to {longest}.",
        )
    tokens = longest if asked is None else asked
    reason = f"trained at {trained:,}"
    if tokens > trained:
        reason += (
            ", extended by dynamic NTK"
            if config.extension.dynamic_ntk
            else ", without dynamic NTK: expect nonsense beyond"
        )
    if tokens > longest > trained:
        reason += f"; beyond {longest:,} its quality falls"
    return tokens, f"{tokens:,} tokens ({reason})"
