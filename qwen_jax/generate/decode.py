"""Decoding: prefill the KV cache with the prompts, then one token per row and step.

`_start` (prefill and first token) and `_advance` (a compiled loop up to a given step) share a
`DecodeState`; whoever needs tokens as they come calls `_advance` step by step.

B batch, T padded prompt length, G room for generated tokens, V vocabulary.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.generate import sample
from qwen_jax.model.transformer import forward_cached, init_cache
from qwen_jax.types import Array, KVCache, Params

_SMALLEST_BUCKET = 16


@flax.struct.dataclass
class DecodeState:
    cache: KVCache
    tokens: Array  # int32 [B, G]; row b's first counts[b] are its result
    counts: Array  # int32 [B]
    last: Array  # int32 [B]; the newest token, not yet in the cache
    done: Array  # bool [B]; a stop id came
    step: Array  # int32 []; tokens chosen so far


@flax.struct.dataclass
class Sampling:
    """What may change from call to call without compiling anew."""

    keys: Array  # random keys [B]
    temperature: Array  # float32 []
    top_k: Array  # int32 []
    top_p: Array  # float32 []
    stop_ids: Array  # int32 [any]; -1 is nothing
    vocab_size: Array  # int32 []


class Method(NamedTuple):
    """Which of the sampler's parts are compiled in."""

    greedy: bool
    top_k: bool
    top_p: bool


def generate(params: Params, prompt_tokens, *, config: ModelConfig, max_new_tokens: int,
             temperature: float = 0.0, top_p: float = 1.0, top_k: int | None = None,
             seed: int | Sequence[int] = 0, stop_ids: Sequence[int] = (),
             vocab_size: int | None = None) -> list[int] | list[list[int]]:
    """Continues one prompt or several, each as if it were alone.

    Prompts are padded on the right to a power of two, and so are the batch and the room for new
    tokens: a second call of about the same size compiles nothing. Dynamic NTK's alpha is fixed by
    the prompt's length (report 2.3.2).

    Args:
      params: weights; they stay on the devices they are on.
      prompt_tokens: one prompt (a list of ids or an int array [T]) or several (a list of such, of
        any lengths, or an int array [B, T]).
      max_new_tokens: 1 or more, per row.
      temperature: 0: always the most probable token; otherwise logits are divided by it.
      top_p: in (0, 1]; draw only from the fewest tokens that have this much probability together.
      top_k: draw only from the k most probable tokens; applied before top_p. None: off.
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
    _check_settings(config, max_new_tokens, temperature, top_p, top_k, vocab_size)
    prompts, single = _read_prompts(prompt_tokens, vocab_size)
    stop_ids = _read_ids(stop_ids, config.vocab_size, "generate(stop_ids)", ConfigError)

    batch_size = _bucket(len(prompts), 1)
    lengths = np.zeros(batch_size, np.int32)  # rows of length 0 fill the batch up
    lengths[:len(prompts)] = [len(prompt) for prompt in prompts]
    padded = np.zeros((batch_size, _bucket(lengths.max())), np.int32)
    for row, prompt in zip(padded, prompts, strict=False):
        row[:len(prompt)] = prompt
    stops = np.full(_bucket(len(stop_ids), 4), -1, np.int32)  # no token is -1
    stops[:len(stop_ids)] = stop_ids

    sampling = Sampling(
        keys=_row_keys(*_read_seeds(seed, len(prompts), batch_size)),
        temperature=np.float32(temperature), top_p=np.float32(top_p),
        top_k=np.int32(min(top_k or config.vocab_size, config.vocab_size)), stop_ids=stops,
        vocab_size=np.int32(vocab_size))
    static = dict(config=config, method=Method(temperature == 0, top_k is not None, top_p < 1))

    params = _in_compute_dtype(params, config)
    state = _start(params, padded, lengths, sampling, room=_bucket(max_new_tokens), **static)
    state = _advance(params, state, sampling, np.int32(max_new_tokens), **static)
    tokens, counts = jax.device_get((state.tokens, state.counts))
    rows = [row[:count].tolist() for row, count in zip(tokens, counts)][:len(prompts)]
    return rows[0] if single else rows


@functools.partial(jax.jit, static_argnames=("config", "method", "room"))
def _start(params: Params, prompts_BT: Array, lengths_B: Array, sampling: Sampling, *,
           config: ModelConfig, method: Method, room: int) -> DecodeState:
    """The state after the prompts and each row's first new token; room for `room` of them."""
    B, T = prompts_BT.shape
    cache = init_cache(config, B, T + room)
    logits, cache = forward_cached(params, prompts_BT, cache, config=config,
                                   num_tokens=lengths_B)
    state = DecodeState(
        cache=cache, tokens=jnp.zeros((B, room), jnp.int32), counts=jnp.zeros((B,), jnp.int32),
        last=jnp.zeros((B,), jnp.int32), done=lengths_B == 0, step=jnp.int32(0))
    return _choose(state, logits, sampling, method)


@functools.partial(jax.jit, static_argnames=("config", "method"), donate_argnums=1)
def _advance(params: Params, state: DecodeState, sampling: Sampling, until: Array, *,
             config: ModelConfig, method: Method) -> DecodeState:
    """Goes on until `until` (int32 []) tokens were chosen per row or every row is done."""

    def go_on(state):
        return (state.step < until) & ~jnp.all(state.done)

    def next_token(state):
        logits, cache = forward_cached(params, state.last[:, None], state.cache, config=config)
        return _choose(state.replace(cache=cache), logits, sampling, method)

    return jax.lax.while_loop(go_on, next_token, state)


def _choose(state: DecodeState, logits_BV: Array, sampling: Sampling,
            method: Method) -> DecodeState:
    logits_BV = sample.allow_below(logits_BV, sampling.vocab_size)
    if method.greedy:
        chosen = sample.greedy(logits_BV)
    else:
        logits_BV = sample.scale_temperature(logits_BV, sampling.temperature)
        if method.top_k:
            logits_BV = sample.keep_top_k(logits_BV, sampling.top_k)
        if method.top_p:
            logits_BV = sample.keep_top_p(logits_BV, sampling.top_p)
        chosen = sample.sample(logits_BV, sampling.keys, state.step)
    done = state.done | jnp.any(chosen[:, None] == sampling.stop_ids[None], axis=1)
    # What a done row chooses is written behind its count, where nobody reads.
    tokens = jax.lax.dynamic_update_slice(state.tokens, chosen[:, None], (0, state.step))
    return state.replace(tokens=tokens, counts=state.counts + (~done).astype(jnp.int32),
                         last=chosen, done=done, step=state.step + jnp.int32(1))


_row_keys = jax.jit(sample.row_keys)


def _in_compute_dtype(params: Params, config: ModelConfig) -> Params:
    """The weights as the model multiplies them: cast once instead of at every token."""
    dtype = jnp.dtype(config.compute_dtype)
    if all(leaf.dtype == dtype for leaf in jax.tree.leaves(params)):
        return params
    return _cast(params, dtype=dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(params: Params, *, dtype) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _bucket(n: int, least: int = _SMALLEST_BUCKET) -> int:
    """The power of two that n tokens or rows are padded to."""
    return max(least, 1 << max(int(n) - 1, 0).bit_length())


def _check_settings(config, max_new_tokens, temperature, top_p, top_k, vocab_size) -> None:
    def check(ok, name, value, what, fix):
        if not ok:
            raise ConfigError(f"{name}={value!r} {what}.", f"generate({name})", fix)

    check(_is_whole(max_new_tokens) and max_new_tokens >= 1, "max_new_tokens", max_new_tokens,
          "is not a positive whole number", "use 1 or more.")
    check(0 <= temperature < np.inf, "temperature", temperature, "is negative or not a number",
          "use 0 for the most probable token, or about 0.7 to 1 to draw.")
    check(0 < top_p <= 1, "top_p", top_p, "is outside (0, 1]", "use 1 to turn it off.")
    check(top_k is None or (_is_whole(top_k) and top_k >= 1), "top_k", top_k,
          "is not a positive whole number", "use None to turn it off.")
    check(_is_whole(vocab_size) and 1 <= vocab_size <= config.vocab_size, "vocab_size", vocab_size,
          f"is outside [1, {config.vocab_size}]", "use the tokenizer's vocab_size.")


def _is_whole(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _read_seeds(seed, num_prompts: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeds and streams, uint32 [batch_size] each."""
    single = _is_whole(seed)
    seeds = [seed] * num_prompts if single else list(seed)
    if len(seeds) != num_prompts:
        raise ConfigError(f"{len(seeds)} seeds for {num_prompts} prompts.", "generate(seed)",
                          "pass one number for all, or one per prompt.")
    if not all(_is_whole(s) and 0 <= s < 2**32 for s in seeds):
        raise ConfigError(f"seed={seed!r} is not a whole number in [0, 2^32).", "generate(seed)",
                          "pass one number for all, or one per prompt.")
    filling = [0] * (batch_size - num_prompts)
    streams = range(num_prompts) if single else [0] * num_prompts
    return np.asarray([*seeds, *filling], np.uint32), np.asarray([*streams, *filling], np.uint32)


def _read_prompts(prompt_tokens, vocab_size: int) -> tuple[list[np.ndarray], bool]:
    """The prompts as int32 arrays, and whether one alone was given."""
    where = "generate(prompt_tokens)"
    if hasattr(prompt_tokens, "ndim"):
        if prompt_tokens.ndim not in (1, 2):
            raise DataError(f"prompt_tokens has shape {prompt_tokens.shape}.", where,
                            "pass ids [T] or [B, T].")
        rows = np.asarray(prompt_tokens)
        single = rows.ndim == 1
    else:
        rows = list(prompt_tokens)
        single = not rows or not (isinstance(rows[0], (list, tuple))
                                  or getattr(rows[0], "ndim", 0) > 0)
    rows = [rows] if single else list(rows)
    if not rows:
        raise DataError("there is no prompt: the batch is empty.", where, "pass at least one.")
    return [_read_ids(row, vocab_size, where if single else f"{where}, row {index}", DataError,
                      may_be_empty=False) for index, row in enumerate(rows)], single


def _read_ids(ids, vocab_size: int, where: str, error, *, may_be_empty: bool = True):
    """int32 [any], checked."""
    values = ids
    if not isinstance(ids, np.ndarray) and not isinstance(ids, jax.Array):
        try:
            values = [operator.index(token) for token in ids]
        except TypeError:
            raise error(f"{_short(ids)} is not a list of token ids.", where,
                        "pass whole numbers, such as Tokenizer.encode gives.") from None
    values = np.asarray(values if len(values) else np.zeros((0,), np.int32))
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise error(f"{_short(ids)} is not a list of token ids.", where,
                    "pass whole numbers, such as Tokenizer.encode gives.")
    if not may_be_empty and not len(values):
        raise error("the prompt is empty.", where,
                    "give the model at least one token to start from, such as <|endoftext|>.")
    bad = values[(values < 0) | (values >= vocab_size)]
    if len(bad):
        raise error(f"token id {bad[0]} is outside of the vocabulary of {vocab_size}.", where,
                    "encode with the tokenizer that the model was trained with.")
    return values.astype(np.int32)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
