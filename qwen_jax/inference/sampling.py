"""Sampling parameters: how the next token is chosen and when a completion finishes.

Every way to generate uses one SamplingParams per prompt: the engine's Request, prompt files, the
chat, server requests, generate() and PPO's rollouts.

To add a setting (min_p, min_tokens, ...), under vLLM's name: add a
SamplingParams field with its range whose default has no effect, an array in SamplingArrays and
sampling_arrays, and its use in loop.choose, inside `only_if`. Prompt files and flags then accept
it. For the server, move it from _NEUTRAL to _SUPPORTED in serve/api/fields. Until then, the setting
is rejected by name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.struct import PyTreeNode

from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.inference.token_ids import read_ids
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, SEED, ZERO_OR_MORE, Checked, Range
from qwen_jax.types import Array

MAX_STOP_TOKEN_IDS = 16  # per request to the engine
MAX_LOGIT_BIAS = 300  # ids per request, as in OpenAI's API
_INT32_MAX = np.iinfo(np.int32).max
_SERVED = ("presence_penalty", "frequency_penalty", "logit_bias")
# List fields, which `per_prompt` applies to all prompts.
_FOR_ALL = ("stop", "stop_token_ids", "logit_bias")


@dataclasses.dataclass(frozen=True)
class SamplingParams(Checked, where="{}"):
    """Sampling parameters, named as in vLLM (max_new_tokens is vLLM's max_tokens).

    Raises:
      ConfigError: a value is out of range; `where` is the field's name.
    """

    max_new_tokens: int = option(
        dataclasses.MISSING, "maximum number of tokens to generate per completion", ONE_OR_MORE
    )
    temperature: float = option(
        0.0, "sampling temperature, which divides the logits; 0: greedy decoding", ZERO_OR_MORE
    )
    top_k: int | None = option(
        None,
        "sample only from the k most probable tokens, before top_p; None: from all",
        Range(1, 2**63 - 1),
    )
    top_p: float = option(
        1.0,
        "nucleus sampling: sample from the most probable tokens that add up to this probability",
        Range(above=0, at_most=1),
    )
    repetition_penalty: float = option(
        1.0,
        "penalty for tokens of the prompt and the completion; above 1: less probable",
        ABOVE_ZERO,
    )
    presence_penalty: float = option(
        0.0,
        "subtracted from the logit of every token that is in the completion",
        Range(-2, 2),
    )
    frequency_penalty: float = option(
        0.0,
        "subtracted from the logit of a token once for each time that it is in the completion",
        Range(-2, 2),
    )
    logit_bias: tuple[str, ...] = option(
        (), "what is added to logits, as ID:NUMBER; -100 excludes a token id", kind="text"
    )
    stop: tuple[str, ...] = option(
        (), "strings that stop a completion; not part of the output", kind="text"
    )
    stop_token_ids: tuple[int, ...] = option((), "token ids that also stop a completion")
    seed: int = option(
        0, "random seed of the samples; for a file of prompts, that of the first line", SEED
    )
    n: int = option(
        1, "completions per prompt; completion i samples with stream i of the seed", ONE_OR_MORE
    )
    logprobs: bool = option(False, "return log-probabilities of the sampled tokens, untruncated")

    def __post_init__(self):
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        ids = read_ids(self.stop_token_ids, None, "stop_token_ids", ConfigError)
        object.__setattr__(self, "stop_token_ids", tuple(ids.tolist()))
        object.__setattr__(self, "logit_bias", _read_bias(self.logit_bias))
        super().__post_init__()
        object.__setattr__(self, "stop", tuple(self.stop))

    @property
    def biases(self) -> dict[int, float]:
        """What is added to the logits of token ids."""
        pairs = (one.split(":") for one in self.logit_bias)
        return {int(token): float(value) for token, value in pairs}

    @classmethod
    def named(cls, where: str, **fields: Any) -> "SamplingParams":
        """Returns SamplingParams; errors name `where.format(field)`, such as a flag for "--{}"."""
        try:
            return cls(**fields)
        except ConfigError as error:
            raise ConfigError(error.what, where.format(error.where), error.fix) from None

    def with_stop_ids(self, stop_token_ids: Sequence[int]) -> "SamplingParams":
        """Returns a copy with the stop ids of a prompt format before its own."""
        both = (*stop_token_ids, *self.stop_token_ids)
        return dataclasses.replace(self, stop_token_ids=both)


def _read_bias(bias: Any) -> tuple[str, ...]:
    """Returns a bias as strings ID:NUMBER, in the order of the ids.

    Args:
      bias: such strings, or OpenAI's object, which maps an id, also as a string, to a number.

    Raises:
      ConfigError: there are too many, or a number is not from -100 to 100.
    """
    try:
        pairs = bias.items() if isinstance(bias, Mapping) else [one.split(":") for one in bias]
        found = {}
        for token, value in pairs:
            if isinstance(value, bool) or not isinstance(token, (int, str)):
                raise ValueError
            found[int(token)] = float(value)
        valid = all(abs(value) <= 100 for value in found.values())  # not so of NaN
        valid = valid and all(0 <= token < _INT32_MAX for token in found)
    except (AttributeError, TypeError, ValueError, OverflowError):
        found, valid = {}, False
    if not valid or len(found) > MAX_LOGIT_BIAS:
        raise ConfigError(
            f"{str(bias)[:60]} is not a bias of token ids.",
            "logit_bias",
            f"pass at most {MAX_LOGIT_BIAS} ids with numbers from -100 to 100.",
        )
    return tuple(f"{token}:{value!r}" for token, value in sorted(found.items()))


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raises ConfigError if logit_bias has an id outside of the vocabulary."""
    if bad := [token for token in params.biases if token >= vocab_size]:
        raise ConfigError(
            f"token id {bad[0]} is not below vocab_size={vocab_size}.",
            "logit_bias",
            "use ids of the model's tokenizer.",
        )


def check_stop_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raises ConfigError if there are too many stop ids, or ids outside the vocabulary."""
    read_ids(params.stop_token_ids, vocab_size, "stop_token_ids", ConfigError)
    if len(params.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise ConfigError(
            f"too many stop ids: {len(params.stop_token_ids)}.",
            "stop_token_ids",
            f"pass at most {MAX_STOP_TOKEN_IDS}, including those of the prompt format.",
        )


def per_prompt(num_prompts: int, where: str = "{}", **fields: Any) -> list[SamplingParams]:
    """Returns SamplingParams for each of several prompts.

    Args:
      where: as in SamplingParams.named.
      fields: a value for all prompts, or a sequence with one for each; stop and stop_token_ids are
        the same for all.

    Raises:
      ConfigError: a value is out of range, or a sequence has the wrong length.
    """
    columns = {}
    for name, value in fields.items():
        if name in _FOR_ALL or not np.ndim(value):
            columns[name] = [value] * num_prompts
            continue
        columns[name] = list(value)
        if len(columns[name]) != num_prompts:
            raise ConfigError(
                f"{name} has {len(columns[name])} values for {num_prompts} prompts.",
                where.format(name),
                "pass one for all prompts, or one for each.",
            )
    return [
        SamplingParams.named(where, **dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


class SamplingArrays(PyTreeNode):
    """The SamplingParams of a batch of B sequences, as arrays for the decoding loop."""

    seeds: Array  # uint32 [B]
    streams: Array  # uint32 [B]; distinguishes sequences with the same seed
    temperature: Array  # float32 [B]; 0: greedy
    top_k: Array  # int32 [B]; vocabulary size or more: off
    top_p: Array  # float32 [B]; 1: off
    repetition_penalty: Array  # float32 [B]; 1: off
    stop_ids: Array  # int32 [B, any]; padded with -1
    limits: Array  # int32 [B]; maximum number of new tokens
    vocab_size: Array  # int32 []; ids at or above it are never sampled
    # None in fixed batches, which do not have these settings.
    presence_penalty: Array | None = None  # float32 [B]; 0: off
    frequency_penalty: Array | None = None  # float32 [B]; 0: off
    bias_ids: Array | None = (
        None  # int32 [B, MAX_LOGIT_BIAS]; padded with an id past the vocabulary
    )
    bias: Array | None = None  # float32 [B, MAX_LOGIT_BIAS]


def sampling_arrays(
    params: Sequence[SamplingParams],
    *,
    vocab_size: int,
    num_stop_ids: int,
    seeds: Sequence[int] | np.ndarray | None = None,
    streams: Sequence[int] | np.ndarray | None = None,
    served: bool = False,
) -> SamplingArrays:
    """Returns NumPy arrays with an entry for each of `params`.

    Args:
      num_stop_ids: maximum number of stop ids per sequence; a dimension of the compiled shape.
      seeds, streams: the seed and stream of each sequence; None: the seeds of `params`, stream 0.
      served: whether the batch has the settings that only the engine has: presence_penalty,
        frequency_penalty and logit_bias.

    Raises:
      ConfigError: `params` have such a setting, and the batch does not.
    """

    def column(name: str, dtype) -> np.ndarray:
        return np.asarray([getattr(one, name) for one in params], dtype)

    stop_ids = np.full((len(params), num_stop_ids), -1, np.int32)
    for row, one in zip(stop_ids, params, strict=True):
        row[: len(one.stop_token_ids)] = one.stop_token_ids
    top_k = [_INT32_MAX if one.top_k is None else min(one.top_k, _INT32_MAX) for one in params]
    zeros = np.zeros(len(params), np.uint32)
    extra: dict[str, np.ndarray] = {}
    if served:
        extra = _served(params, column)
    elif used := [name for name in _SERVED for one in params if getattr(one, name)]:
        raise ConfigError(
            f"a fixed batch has no {used[0]}.", used[0], "use the engine, or omit it."
        )
    return SamplingArrays(
        seeds=column("seed", np.uint32) if seeds is None else np.asarray(seeds, np.uint32),
        streams=zeros if streams is None else np.asarray(streams, np.uint32),
        temperature=column("temperature", np.float32),
        top_k=np.asarray(top_k, np.int32),
        top_p=column("top_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        stop_ids=stop_ids,
        limits=column("max_new_tokens", np.int32),
        vocab_size=np.int32(vocab_size),
        **extra,
    )


def _served(params: Sequence[SamplingParams], column) -> dict[str, np.ndarray]:
    """Returns the arrays of the settings that only the engine has."""
    bias_ids = np.full((len(params), MAX_LOGIT_BIAS), _INT32_MAX, np.int32)
    bias = np.zeros((len(params), MAX_LOGIT_BIAS), np.float32)
    for ids, values, one in zip(bias_ids, bias, params, strict=True):
        for index, (token, value) in enumerate(one.biases.items()):
            ids[index], values[index] = token, value
    return {
        "presence_penalty": column("presence_penalty", np.float32),
        "frequency_penalty": column("frequency_penalty", np.float32),
        "bias_ids": bias_ids,
        "bias": bias,
    }


def idle_slots(num_slots: int, *, vocab_size: int) -> SamplingArrays:
    """Returns the arrays of an engine whose decode slots have no request yet."""
    return sampling_arrays(
        [SamplingParams(max_new_tokens=1)] * num_slots,
        vocab_size=vocab_size,
        num_stop_ids=MAX_STOP_TOKEN_IDS,
        served=True,
    )


def write_slot(arrays: SamplingArrays, slot: int, params: SamplingParams, *, stream: int) -> None:
    """Writes one request's parameters to a decode slot of NumPy arrays, in place."""
    new = sampling_arrays(
        [params],
        vocab_size=arrays.vocab_size,
        num_stop_ids=arrays.stop_ids.shape[1],
        streams=[stream],
        served=arrays.bias is not None,
    )
    for old, one in zip(jax.tree.leaves(arrays), jax.tree.leaves(new), strict=True):
        if np.ndim(old):
            old[slot] = one[0]
