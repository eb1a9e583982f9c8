"""Likelihoods of choices from a server that returns the prompt's log-probabilities (`echo`).

With a tokenizer, prompts are sent as ids, split as for a checkpoint (evaluate/boundary.py). Without
one they are sent as text, and the server's own tokens must end where the prompt ends.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.evaluate.boundary import split
from qwen_jax.evaluate.server.client import Client, Refused
from qwen_jax.tokenizer.bpe import Tokenizer


class Likelihoods(NamedTuple):
    """Log-probabilities of each choice's tokens, in nats.

    Attributes:
      prompt_tokens: length of the prompt.
      separate: whether a prompt and a choice were encoded separately.
    """

    logprobs: list[list[float]]
    prompt_tokens: int
    separate: bool


def score(
    client: Client, prompt: str, choices: Sequence[str], tokenizer: Tokenizer | None, where: str
) -> Likelihoods:
    """Returns the likelihoods of choices after a prompt.

    Args:
      where: names the example in errors.

    Raises:
      ConfigError: the server does not return log-probabilities of prompts.
      DataError: a token lies across the end of the prompt.
      Refused: the server does not accept the request.
      ServerError: it does not answer.
    """
    if tokenizer is not None:
        parts = split(tokenizer, prompt, choices)
        rows = [[*part.context, *part.continuation] for part in parts]
        found = _echo(client, rows)
        for one, row in zip(found, rows, strict=True):
            if len(one["token_logprobs"]) < len(row):
                raise _missing(where)
        logprobs = [
            _numbers(one["token_logprobs"][len(part.context) : len(row)], where)
            for one, part, row in zip(found, parts, rows, strict=True)
        ]
        return Likelihoods(logprobs, len(parts[0].context), any(part.separate for part in parts))
    # As boundary.split: spaces at the end of the prompt belong to the choices.
    text = prompt.rstrip(" ")
    rows = [prompt + choice for choice in choices]
    logprobs, lengths = [], []
    for one, row in zip(_echo(client, rows), rows, strict=True):
        first, last = _tokens_of(one, row, len(text), where)
        logprobs.append(_numbers(one["token_logprobs"][first:last], where))
        lengths.append(first)
    return Likelihoods(logprobs, lengths[0], False)


def _echo(client: Client, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the `logprobs` of each row, in order."""
    body = {"prompt": list(rows), "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    try:
        answer = client.post("completions", body)
    except Refused as error:
        if any(word in error.what.lower() for word in ("echo", "logprobs")):
            raise _no_echo(client, error.what) from error
        raise
    try:
        found = sorted(answer["choices"], key=lambda choice: choice["index"])
        logprobs = [choice["logprobs"] for choice in found]
        if len(logprobs) != len(rows) or any(len(one["token_logprobs"]) < 2 for one in logprobs):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _no_echo(client, "the answer has no log-probabilities of the prompt.") from None
    return logprobs


def _no_echo(client: Client, what: str) -> ConfigError:
    return ConfigError(
        f"the server does not return log-probabilities of a prompt: {what}",
        f"{client.base}/completions with echo and logprobs",
        "evaluate tasks that generate text, such as gsm8k or mmlu_chat; or use --checkpoint.",
    )


def _tokens_of(logprobs: dict[str, Any], row: str, begin: int, where: str) -> tuple[int, int]:
    """Returns the first token of the choice, and the first one behind the row."""
    tokens, offsets = logprobs.get("tokens"), logprobs.get("text_offset")
    count = len(logprobs["token_logprobs"])
    if not isinstance(offsets, list) or len(offsets) != count:
        if not isinstance(tokens, list) or not "".join(map(str, tokens)).startswith(row):
            raise DataError(
                "the server does not say where its tokens are in the text.",
                where,
                "pass the model's --tokenizer.",
            )
        offsets = [0]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
    last = next((i for i, at in enumerate(offsets) if at >= len(row)), count)
    if offsets[0] != 0:
        raise _missing(where)
    if last == count and isinstance(tokens, list) and len(tokens) == count:
        if offsets[-1] + len(str(tokens[-1])) < len(row):
            raise _missing(where)
    if begin not in offsets[:last]:
        raise DataError(
            "a token lies across the end of the prompt and the choice.",
            where,
            "pass the model's --tokenizer.",
        )
    return offsets.index(begin), last


def _missing(where: str) -> DataError:
    return DataError(
        "the server returned log-probabilities of fewer tokens than it was sent.",
        where,
        "check the server: it may cut prompts, or leave out the last token.",
    )


def _numbers(values: Sequence[Any], where: str) -> list[float]:
    """Log-probabilities that are there and finite."""
    if not values or not all(
        type(value) in (int, float) and float("-inf") < value < float("inf") for value in values
    ):
        raise DataError(
            f"log-probabilities that are missing or not finite: {str(list(values))[:100]}.",
            where,
            "check the server.",
        )
    return [float(value) for value in values]
