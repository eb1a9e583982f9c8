"""What a small model writes, and which of several texts it finds most likely."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.inference.decode import generate
from qwen_jax.model.transformer import forward
from qwen_jax.synthetic.worlds.problem import Problem, is_right
from qwen_jax.tokenizer import chatml
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params

_AT_ONCE = 128  # prompts; one compiled program for all calls


@dataclasses.dataclass(frozen=True)
class Response:
    """What a model wrote."""

    text: str  # without the end token
    ended: bool  # whether an end token followed before the limit


def answers(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    *,
    max_new_tokens: int = 64,
    **settings: Any,
) -> list[str]:
    """Returns a response to each question, as a chat model gives it.

    settings: further ones of `completions`.
    """
    settings["max_new_tokens"] = max_new_tokens
    return [each.text for each in responses(model, params, tokenizer, questions, **settings)]


def responses(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[str | Sequence[tuple[str, str]]],
    **settings: Any,
) -> list[Response]:
    """Returns a response to each question, or to each list of turns (role, content).

    settings: those of `completions`.
    """
    turns = [[("user", each)] if isinstance(each, str) else each for each in questions]
    prompts = [chatml.prompt(each, tokenizer).tolist() for each in turns]
    return completions(model, params, tokenizer, prompts, **settings)


def continuations(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    **settings: Any,
) -> list[str]:
    """Returns the text that continues each prompt, up to an end token.

    settings: those of `completions`.
    """
    return [each.text for each in completions(model, params, tokenizer, prompts, **settings)]


def completions(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[Response]:
    """Returns what continues each prompt, up to an end token.

    Prompts of similar length are decoded together, so that short ones do not wait for long ones.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[Response] = [Response("", False)] * len(prompts)
    for first in range(0, len(order), _AT_ONCE):
        chosen = order[first : first + _AT_ONCE]
        filled = [list(prompts[i]) for i in chosen]
        filled += [filled[-1]] * (_AT_ONCE - len(filled))
        generated = generate(
            params,
            filled,
            config=model,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            # A seed of its own for each prompt: its text does not depend on the others.
            seed=[
                (seed * 1_000_003 + i) % 2**32 for i in (*chosen, *[0] * (_AT_ONCE - len(chosen)))
            ],
            stop_ids=list(chatml.stop_ids(tokenizer)),
            vocab_size=tokenizer.vocab_size,
        )
        for i, tokens in zip(chosen, generated, strict=False):
            found[i] = Response(tokenizer.decode(tokens), len(tokens) < max_new_tokens)
    return found


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with several texts that may follow, as in MMLU; the first one is right."""

    context: str
    options: tuple[str, ...]


def chosen_right(
    model: ModelConfig, params: Params, tokenizer: Tokenizer, questions: Sequence[Choice]
) -> list[int]:
    """Returns 1 for each question whose right option has the highest mean log-likelihood.

    The mean is over the tokens of the option. Ties are wrong.
    """
    texts = [
        ([tokenizer.end_of_text, *tokenizer.encode(each.context)], tokenizer.encode(option))
        for each in questions
        for option in each.options
    ]
    length = -(-max(len(before) + len(after) for before, after in texts) // 32) * 32
    scores: list[float] = []
    score = _likelihood(model)
    for first in range(0, len(texts), _AT_ONCE):
        rows = np.zeros((_AT_ONCE, length + 1), np.int32)
        spans = np.zeros((_AT_ONCE, length), np.float32)
        for row, span, (before, after) in zip(
            rows, spans, texts[first : first + _AT_ONCE], strict=False
        ):
            row[: len(before) + len(after)] = [*before, *after]
            span[len(before) - 1 : len(before) + len(after) - 1] = 1 / len(after)
        scores += score(params, rows, spans).tolist()
    found, at = [], 0
    for each in questions:
        right, *wrong = scores[at : at + len(each.options)]
        at += len(each.options)
        found.append(int(right > max(wrong)))
    return found


@functools.cache
def _likelihood(model: ModelConfig):
    def score(params, tokens_BT, weights_BT):
        logits_BTV = forward(params, tokens_BT[:, :-1], config=model)
        chosen = jnp.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum((chosen - jax.nn.logsumexp(logits_BTV, axis=-1)) * weights_BT, axis=1)

    return jax.jit(score)


def rights(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int = 64,
) -> list[int]:
    """Returns 1 for each problem whose greedy answer is right, else 0."""
    texts = answers(
        model,
        params,
        tokenizer,
        [problem.question for problem in problems],
        max_new_tokens=max_new_tokens,
    )
    return [int(is_right(each, text)) for each, text in zip(problems, texts, strict=True)]
