"""Decodes a fixed batch: prefills the prompts, then samples one token per sequence and step.

engine.py handles requests that arrive and finish while others run.

B batch, T padded prompt length, R maximum number of new tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.decoder.cached_forward import forward_cached
from qwen_jax.inference.decoder.kv_cache import init_cache
from qwen_jax.inference.decoder.weights import PrepackedParams, for_decoding
from qwen_jax.inference.loop import DecodeState, NewTokens, advance, take
from qwen_jax.inference.sampling import SamplingArrays, per_prompt, sampling_arrays
from qwen_jax.inference.token_ids import is_integer, read_ids
from qwen_jax.types import Array, Params

_SMALLEST_BUCKET = 16


def generate(
    params: Params,
    prompt_tokens,
    *,
    config: ModelConfig,
    max_new_tokens: int | Sequence[int],
    temperature: float | Sequence[float] = 0.0,
    top_p: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int | None] | None = None,
    repetition_penalty: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] = (),
    vocab_size: int | None = None,
) -> list[Any]:
    """Continues one or several prompts, each independently of the others.

    The prompt length, the batch size and the number of new tokens are padded to powers of two
    (prompts on the right), so a second call of similar size does not recompile. The prompt length
    determines dynamic NTK's alpha (report 2.5).

    Args:
      params: weights, which stay on their devices.
      prompt_tokens: one prompt (a list of ids or an int array [T]) or several (a list of these,
        of any lengths, or an int array [B, T]).
      max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed: as in SamplingParams
        (inference/sampling.py); one value for all prompts, or a sequence with one for each. With
        one seed for all, prompt b samples with stream b; with its own seed, as in a batch of one.
      stop_ids: ids that finish a sequence; they are not part of the result.
      vocab_size: ids at or above this value are embedding padding and are never sampled. None:
        config.vocab_size.

    Returns:
      Only the new tokens: a list of ids for one prompt, a list of lists for several. A list is
      shorter than max_new_tokens if the sequence reached a stop id.

    Raises:
      DataError: a prompt is empty, or has ids outside the vocabulary.
      ConfigError: a setting is out of range.

    Example:
      >>> generate(params, tokenizer.encode("def main("), config=config, max_new_tokens=32,
      ...          stop_ids=[tokenizer.end_of_text])  # doctest: +SKIP
    """
    vocab_size = config.vocab_size if vocab_size is None else vocab_size
    if not (is_integer(vocab_size) and 1 <= vocab_size <= config.vocab_size):
        raise ConfigError(
            f"vocab_size={vocab_size!r} is outside [1, {config.vocab_size}].",
            "generate(vocab_size)",
            "use the tokenizer's vocab_size.",
        )
    prompts, single = _read_prompts(prompt_tokens, vocab_size)
    settings = per_prompt(
        len(prompts),
        "generate({})",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop_token_ids=read_ids(stop_ids, config.vocab_size, "generate(stop_ids)", ConfigError),
    )
    padded, lengths = _pad(prompts)
    settings += [settings[0]] * (len(padded) - len(prompts))
    sampling = sampling_arrays(
        settings,
        vocab_size=vocab_size,
        num_stop_ids=_bucket(len(settings[0].stop_token_ids), 4),
        streams=None if np.ndim(seed) else range(len(padded)),
    )
    room = _bucket(int(sampling.limits.max()))
    new = rollout(params, padded, lengths, sampling, config=config, room=room)
    tokens = jax.device_get(new.tokens)
    new_tokens = [row[row >= 0].tolist() for row in tokens[: len(prompts)]]
    return new_tokens[0] if single else new_tokens


@functools.partial(jax.jit, static_argnames=("config", "room"))
def rollout(
    params: Params,
    prompts: Array,
    lengths: Array,
    sampling: SamplingArrays,
    *,
    config: ModelConfig,
    room: int,
) -> NewTokens:
    """Continues every prompt until all have finished: prefill and decoding in one program.

    Args:
      prompts: int32 [B, T], padded on the right.
      lengths: int32 [B]; the length of each prompt. A prompt of length 0 generates no tokens.
      sampling: the sampling parameters of each prompt; their limits are at most `room`.
      room: the maximum number of new tokens, a static shape.
    """
    B, T = prompts.shape
    params = for_decoding(params, config=config)
    cache = init_cache(config, B, T + room, layer_by_layer=isinstance(params, PrepackedParams))
    logits, cache = forward_cached(
        params, prompts, cache, config=config, num_tokens=lengths, empty=True
    )
    real = jnp.arange(T, dtype=jnp.int32)[None] < lengths[:, None]
    # Padding is mapped to an id past the vocabulary, which the scatter drops.
    seen = (
        jnp.zeros((B, config.vocab_size), bool)
        .at[jnp.arange(B, dtype=jnp.int32)[:, None], jnp.where(real, prompts, config.vocab_size)]
        .set(True, mode="drop")
    )
    state = DecodeState(
        cache=cache,
        last=jnp.zeros((B,), jnp.int32),
        counts=jnp.zeros((B,), jnp.int32),
        active=lengths > 0,
        seen=seen,
    )
    state, first, first_logprobs = take(state, logits, sampling)
    if room == 1:
        return NewTokens(tokens=first[:, None], logprobs=first_logprobs[:, None])
    _, new = advance(
        params,
        state,
        sampling,
        jnp.max(sampling.limits) - 1,
        jnp.bool_(False),
        config=config,
        room=room - 1,
    )
    return NewTokens(
        tokens=jnp.concatenate([first[:, None], new.tokens], axis=1),
        logprobs=jnp.concatenate([first_logprobs[:, None], new.logprobs], axis=1),
    )


def _bucket(n: int, minimum: int = _SMALLEST_BUCKET) -> int:
    """Returns the power of two that n tokens or prompts are padded to."""
    return max(minimum, 1 << max(n - 1, 0).bit_length())


def _pad(prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [B, T] and lengths [B], padded to bucket sizes with prompts of length 0."""
    lengths = np.zeros(_bucket(len(prompts), 1), np.int32)
    lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
    padded = np.zeros((len(lengths), _bucket(int(lengths.max()))), np.int32)
    for row, prompt in zip(padded, prompts, strict=False):
        row[: len(prompt)] = prompt
    return padded, lengths


def _read_prompts(prompt_tokens, vocab_size: int) -> tuple[list[np.ndarray], bool]:
    """Returns the prompts as int32 arrays, and whether the argument was a single prompt."""
    where = "generate(prompt_tokens)"
    if hasattr(prompt_tokens, "ndim"):
        if prompt_tokens.ndim not in (1, 2):
            raise DataError(
                f"prompt_tokens has shape {prompt_tokens.shape}.", where, "pass ids [T] or [B, T]."
            )
        prompts = np.asarray(prompt_tokens)
        single = prompts.ndim == 1
    else:
        prompts = list(prompt_tokens)
        single = not prompts or not (
            isinstance(prompts[0], (list, tuple)) or getattr(prompts[0], "ndim", 0) > 0
        )
    prompts = [prompts] if single else list(prompts)
    if not prompts:
        raise DataError("the batch has no prompts.", where, "pass at least one prompt.")
    return [
        read_ids(
            prompt,
            vocab_size,
            where if single else f"{where}, prompt {index}",
            DataError,
            may_be_empty=False,
        )
        for index, prompt in enumerate(prompts)
    ], single
