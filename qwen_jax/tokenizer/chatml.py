"""Conversations as tokens, in the ChatML format. Report: 3.1.1."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qwen_jax.errors import TokenizerError, unknown_name
from qwen_jax.tokenizer.bpe import Tokenizer

ROLES = ("system", "user", "assistant", "tool")  # a tool's answer is a turn of its own
DEFAULT_SYSTEM = "You are a helpful assistant."

Message = tuple[str, str] | Mapping[str, str]  # (role, content) or {"role": ..., "content": ...}


class Span(NamedTuple):
    """tokens[start:end] are a message's content and the <|im_end|> after it."""

    role: str
    start: int
    end: int


class Rendered(NamedTuple):
    """A conversation as tokens, and where in it the messages are."""

    tokens: np.ndarray  # int32 [T]
    spans: tuple[Span, ...]  # one a message, the default system message included


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """`<|im_start|>role\\ncontent<|im_end|>\\n` for each message, in order.

    A conversation that does not start with a system message gets Qwen's. Special tokens written in
    a content stay text, so that no content can end its message or speak for another role. Role,
    line end and content are encoded apart, as the original does: a content that starts with a line
    end does not merge with the one before it.

    Raises:
      TokenizerError: no messages, a message of another form, or an unknown role.

    Report: 3.1.1.
    """
    messages = [_parse(message, place) for place, message in enumerate(messages)]
    if not messages:
        raise TokenizerError("there are no messages.", "messages", "pass one message or more.")
    if messages[0][0] != "system":
        messages.insert(0, ("system", DEFAULT_SYSTEM))
    line_end = tokenizer.encode("\n")
    tokens, spans = [], []
    for role, content in messages:
        tokens += [tokenizer.im_start, *tokenizer.encode(role), *line_end]
        start = len(tokens)
        tokens += [*tokenizer.encode(content), tokenizer.im_end]
        spans.append(Span(role, start, len(tokens)))
        tokens += line_end
    return Rendered(np.array(tokens, np.int32), tuple(spans))


def prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> np.ndarray:
    """The tokens (int32 [T]) after which the model answers: they end in
    `<|im_start|>assistant\\n`. Raises as render does."""
    opening = [tokenizer.im_start, *tokenizer.encode("assistant"), *tokenizer.encode("\n")]
    return np.append(render(messages, tokenizer).tokens, np.array(opening, np.int32))


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer, or the text if the model was not taught ChatML."""
    return tokenizer.im_end, tokenizer.end_of_text


def loss_weights(rendered: Rendered, roles: Sequence[str] = ("assistant",)) -> np.ndarray:
    """1 where a token is to be learned, else 0 (float32 [T]): what `roles` say, and <|im_end|>.

    Weight t belongs to token t as the target, so it goes with the logits at t - 1.

    Raises:
      TokenizerError: an unknown role.
    """
    for role in roles:
        _check_role(role, "loss_weights(roles)")
    weights = np.zeros(len(rendered.tokens), np.float32)
    for span in rendered.spans:
        if span.role in roles:
            weights[span.start : span.end] = 1
    return weights


def original_loss_weights(rendered: Rendered) -> np.ndarray:
    """What the original fine-tuning script learns, for comparison (float32 [T]).

    Beside what answers say it keeps the markers of every turn, the user's included: each
    <|im_start|>, <|im_end|> and the line end after it. Models tuned so go on after their answer by
    opening a user's turn, which people complained about.
    """
    weights = loss_weights(rendered)
    first = 0
    for span in rendered.spans:
        weights[first] = 1  # <|im_start|>
        weights[span.end - 1 : span.end + 1] = 1  # <|im_end|> and the line end
        first = span.end + 1
    return weights


def _parse(message: Message, place: int) -> tuple[str, str]:
    where = f"messages[{place}]"
    try:
        if isinstance(message, Mapping):
            role, content = message["role"], message["content"]
        else:
            role, content = message
    except (KeyError, TypeError, ValueError):
        role = content = None
    if isinstance(message, str) or not (isinstance(role, str) and isinstance(content, str)):
        raise TokenizerError(
            f"{str(message)[:80]!r} is not a message.",
            where,
            'pass (role, content) or {"role": ..., "content": ...}, both text.',
        )
    _check_role(role, where)
    return role, content


def _check_role(role: str, where: str) -> None:
    if role not in ROLES:
        raise unknown_name("role", role, ROLES, where, TokenizerError)
