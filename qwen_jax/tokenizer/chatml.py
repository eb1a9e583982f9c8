"""Renders conversations as tokens in the ChatML format. Report: 3.1.1."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qwen_jax.errors import TokenizerError, unknown_name
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template.builtin import DEFAULT_SYSTEM, ROLES

Message = tuple[str, str] | Mapping[str, str]  # (role, content) or {"role": ..., "content": ...}


class Span(NamedTuple):
    """tokens[start:end] are a message's content and the <|im_end|> after it."""

    role: str
    start: int
    end: int


class Rendered(NamedTuple):
    """The tokens of a conversation and the span of each message."""

    tokens: np.ndarray  # int32 [T]
    spans: tuple[Span, ...]  # one per message, including the default system message


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """Renders each message as `<|im_start|>role\\ncontent<|im_end|>\\n`, in order.

    A conversation without a leading system message gets Qwen's default one. Special tokens in the
    content are encoded as text, so content cannot end its message or impersonate another role.
    Role, newline and content are encoded separately, as in the original code, so a newline at the
    start of the content does not merge with the newline before it.

    Raises:
      TokenizerError: there are no messages, a message is malformed, or a role is unknown.

    Report: 3.1.1.
    """
    messages = [parse(message, index) for index, message in enumerate(messages)]
    if not messages:
        raise TokenizerError("there are no messages.", "messages", "pass at least one message.")
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
    """Returns the prompt for the next assistant turn, int32 [T].

    It ends with `<|im_start|>assistant\\n`. Raises as render does.
    """
    opening = [tokenizer.im_start, *tokenizer.encode("assistant"), *tokenizer.encode("\n")]
    return np.append(render(messages, tokenizer).tokens, np.array(opening, np.int32))


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids that end a response: <|im_end|>, and <|endoftext|> for base models."""
    return tokenizer.im_end, tokenizer.end_of_text


def loss_weights(rendered: Rendered, roles: Sequence[str] = ("assistant",)) -> np.ndarray:
    """Returns loss weights, float32 [T]: 1 on the content and the <|im_end|> of `roles`, else 0.

    Weight t applies to token t as the target, that is, to the logits at t - 1.

    Raises:
      TokenizerError: a role is unknown.
    """
    for role in roles:
        _check_role(role, "loss_weights(roles)")
    weights = np.zeros(len(rendered.tokens), np.float32)
    for span in rendered.spans:
        if span.role in roles:
            weights[span.start : span.end] = 1
    return weights


def original_loss_weights(rendered: Rendered, written: np.ndarray | None = None) -> np.ndarray:
    """Returns the loss weights of the original fine-tuning script, float32 [T], for comparison.

    The script also includes the markers of every turn in the loss, even the user's: each
    <|im_start|>, <|im_end|> and the newline after it. Models tuned with it continue with a user
    turn after their response, which is a known issue.

    Args:
      written: bool [T], what the assistant wrote; None: the content of its turns.
    """
    weights = loss_weights(rendered) if written is None else written.astype(np.float32)
    first = 0
    for span in rendered.spans:
        weights[first] = 1  # <|im_start|>
        weights[span.end - 1 : span.end + 1] = 1  # <|im_end|> and the newline
        first = span.end + 1
    return weights


def parse(message: Message, index: int) -> tuple[str, str]:
    """Returns the role and the content of a message.

    Raises:
      TokenizerError: it is malformed, or the role is unknown.
    """
    where = f"messages[{index}]"
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
            'pass (role, content) or {"role": ..., "content": ...}, both strings.',
        )
    _check_role(role, where)
    return role, content


def _check_role(role: str, where: str) -> None:
    if role not in ROLES:
        raise unknown_name("role", role, ROLES, where, TokenizerError)
