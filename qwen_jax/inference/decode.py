"""Decoding of a fixed batch: prefill the KV cache with the prompts, then one token a row and step.

Requests that come and go while others run are the engine's (engine.py).

B batch, T padded prompt length, R room for new tokens.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.cached_forward import forward_cached
from qwen_jax.inference.cpu_weights import TurnedParams
from qwen_jax.inference.kv_cache import init_cache
from qwen_jax.inference.loop import DecodeState, NewTokens, Sampling, advance, take
from qwen_jax.inference.request import check_settings, is_whole, read_ids
from qwen_jax.inference.weights import for_decoding
from qwen_jax.types import Array, Params

_SMALLEST_BUCKET = 16
_LARGEST = np.iinfo(np.int32).max


def generate(
    params: Params,
    prompt_tokens,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    repetition_penalty: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] = (),
    vocab_size: int | None = None,
) -> list[int] | list[list[int]]:
    """Continues one prompt or several, each as if it were alone.

    Prompts are padded on the right to a power of two, and so are the batch and the room for new
    tokens: a second call of about the same size compiles nothing. Dynamic NTK's alpha is fixed by
    the prompt's length (report 2.5).

    Args:
      params: weights; they stay on the devices they are on.
      prompt_tokens: one prompt (a list of ids or an int array [T]) or several (a list of such, of
        any lengths, or an int array [B, T]).
      max_new_tokens: 1 or more, per row.
      temperature: 0: always the most probable token; otherwise logits are divided by it.
      top_p: in (0, 1]; draw only from the fewest tokens that have this much probability together.
      top_k: draw only from the k most probable tokens; applied before top_p. None: off.
      repetition_penalty: tokens of the prompt and the answer become less probable; 1: off.
      seed: one number, from which row b draws with stream b; or one number per row, with which
        a row draws as it would alone.
      stop_ids: a row ends when it produces one of these; the stop id is not part of its result.
      vocab_size: ids from here on, an embedding's padding, are never produced. None: all of
        config.vocab_size are real.

    Returns:
      The new tokens only: a list of ids for one prompt, a list of lists for several. A row shorter
      than max_new_tokens ended at a stop id.

    Raises:
      DataError: an empty prompt, or ids outside of the vocabulary.
      ConfigError: a setting out of its range.

    Example:
      >>> generate(params, tokenizer.encode("def main("), config=config, max_new_tokens=32,
      ...          stop_ids=[tokenizer.end_of_text])  # doctest: +SKIP
    """
    vocab_size = config.vocab_size if vocab_size is None else vocab_size
    check_settings(
        "generate",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
    )
    if not (is_whole(vocab_size) and 1 <= vocab_size <= config.vocab_size):
        raise ConfigError(
            f"vocab_size={vocab_size!r} is outside [1, {config.vocab_size}].",
            "generate(vocab_size)",
            "use the tokenizer's vocab_size.",
        )
    prompts, single = _read_prompts(prompt_tokens, vocab_size)
    stop_ids = read_ids(stop_ids, config.vocab_size, "generate(stop_ids)", ConfigError)

    batch_size = _bucket(len(prompts), 1)
    lengths = np.zeros(batch_size, np.int32)  # rows of length 0 fill the batch up
    lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
    padded = np.zeros((batch_size, _bucket(lengths.max())), np.int32)
    for row, prompt in zip(padded, prompts, strict=False):
        row[: len(prompt)] = prompt
    stops = np.full(_bucket(len(stop_ids), 4), -1, np.int32)  # no token is -1
    stops[: len(stop_ids)] = stop_ids

    sampling = _sampling(
        batch_size,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k or config.vocab_size,
        repetition_penalty=repetition_penalty,
        stop_ids=stops,
        max_new_tokens=max_new_tokens,
        vocab_size=vocab_size,
        seeds=_read_seeds(seed, len(prompts), batch_size),
    )
    new = rollout(params, padded, lengths, sampling, config=config, room=_bucket(max_new_tokens))
    tokens = jax.device_get(new.tokens)
    rows = [row[row >= 0].tolist() for row in tokens[: len(prompts)]]
    return rows[0] if single else rows


@functools.partial(jax.jit, static_argnames=("config", "room"))
def rollout(
    params: Params,
    prompts: Array,
    lengths: Array,
    sampling: Sampling,
    *,
    config: ModelConfig,
    room: int,
) -> NewTokens:
    """Continues every row until all are done: prefill and the whole loop in one program.

    Args:
      prompts: int32 [B, T], padded on the right.
      lengths: int32 [B]; the tokens of each prompt. A row of length 0 gets no tokens.
      sampling: per row; its limits are at most `room`.
    """
    B, T = prompts.shape
    params = for_decoding(params, config=config)
    cache = init_cache(config, B, T + room, layer_by_layer=isinstance(params, TurnedParams))
    logits, cache = forward_cached(
        params, prompts, cache, config=config, num_tokens=lengths, empty=True
    )
    real = jnp.arange(T, dtype=jnp.int32)[None] < lengths[:, None]
    # Padding counts as an id behind the vocabulary, which is dropped.
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


def _sampling(
    batch_size: int,
    *,
    temperature,
    top_p,
    top_k,
    repetition_penalty,
    stop_ids,
    max_new_tokens,
    vocab_size,
    seeds,
) -> Sampling:
    """The same settings for every row, but for the seeds."""

    def fill(value, dtype):
        return np.full(batch_size, value, dtype)

    return Sampling(
        seeds=seeds[0],
        streams=seeds[1],
        temperature=fill(temperature, np.float32),
        top_k=fill(min(top_k, _LARGEST), np.int32),
        top_p=fill(top_p, np.float32),
        repetition_penalty=fill(repetition_penalty, np.float32),
        stop_ids=np.tile(stop_ids[None], (batch_size, 1)),
        limits=fill(max_new_tokens, np.int32),
        vocab_size=np.int32(vocab_size),
    )


def _bucket(n: int, least: int = _SMALLEST_BUCKET) -> int:
    """The power of two that n tokens or rows are padded to."""
    return max(least, 1 << max(int(n) - 1, 0).bit_length())


def _read_seeds(seed, num_prompts: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeds and streams, uint32 [batch_size] each."""
    single = is_whole(seed)
    seeds = [seed] * num_prompts if single else list(seed)
    if len(seeds) != num_prompts:
        raise ConfigError(
            f"{len(seeds)} seeds for {num_prompts} prompts.",
            "generate(seed)",
            "pass one number for all, or one per prompt.",
        )
    if not all(is_whole(s) and 0 <= s < 2**32 for s in seeds):
        raise ConfigError(
            f"seed={seed!r} is not a whole number in [0, 2^32).",
            "generate(seed)",
            "pass one number for all, or one per prompt.",
        )
    filling = [0] * (batch_size - num_prompts)
    streams = range(num_prompts) if single else [0] * num_prompts
    return np.asarray([*seeds, *filling], np.uint32), np.asarray([*streams, *filling], np.uint32)


def _read_prompts(prompt_tokens, vocab_size: int) -> tuple[list[np.ndarray], bool]:
    """The prompts as int32 arrays, and whether one alone was given."""
    where = "generate(prompt_tokens)"
    if hasattr(prompt_tokens, "ndim"):
        if prompt_tokens.ndim not in (1, 2):
            raise DataError(
                f"prompt_tokens has shape {prompt_tokens.shape}.", where, "pass ids [T] or [B, T]."
            )
        rows = np.asarray(prompt_tokens)
        single = rows.ndim == 1
    else:
        rows = list(prompt_tokens)
        single = not rows or not (
            isinstance(rows[0], (list, tuple)) or getattr(rows[0], "ndim", 0) > 0
        )
    rows = [rows] if single else list(rows)
    if not rows:
        raise DataError("there is no prompt: the batch is empty.", where, "pass at least one.")
    return [
        read_ids(
            row,
            vocab_size,
            where if single else f"{where}, row {index}",
            DataError,
            may_be_empty=False,
        )
        for index, row in enumerate(rows)
    ], single
