"""What the engine asks of the devices: prefill a row, copy one, begin one, advance all.

Each is one jitted program with fixed shapes and a donated state, so that a running engine compiles
nothing and copies no cache.

B rows, P prompts of T tokens prefilled at a time, S slots, V vocabulary.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode
from jax.sharding import Mesh

from qwen_jax.config import ModelConfig
from qwen_jax.inference import loop
from qwen_jax.inference.decoder import kv_cache
from qwen_jax.inference.decoder.cached_forward import forward_cached
from qwen_jax.inference.loop import DecodeState, NewTokens
from qwen_jax.inference.sampling import SamplingArrays
from qwen_jax.parallel.sharding import use_layout
from qwen_jax.types import Array, Params


class Rows(PyTreeNode):
    """The device's side of the engine."""

    decode: DecodeState
    prompt_logits: Array  # float32 [B, V]; after the last token of each row's prompt


def _on(mesh: Mesh | None):
    return contextlib.nullcontext() if mesh is None else use_layout(mesh)


@functools.partial(
    jax.jit, static_argnames=("config", "mesh", "rows", "slots", "cache_dtype", "layer_by_layer")
)
def make_rows(
    *,
    config: ModelConfig,
    mesh: Mesh | None,
    rows: int,
    slots: int,
    cache_dtype: str | None,
    layer_by_layer: bool,
) -> Rows:
    """All rows empty and idle."""
    with _on(mesh):
        cache = kv_cache.init_cache(
            config, rows, slots, dtype=cache_dtype, layer_by_layer=layer_by_layer
        )

    def zeros():
        return jnp.zeros((rows,), jnp.int32)

    return Rows(
        decode=DecodeState(
            cache=cache,
            last=zeros(),
            counts=zeros(),
            active=zeros() > 0,
            seen=jnp.zeros((rows, config.vocab_size), bool),
        ),
        prompt_logits=jnp.zeros((rows, config.vocab_size), jnp.float32),
    )


@functools.partial(jax.jit, static_argnames=("config", "mesh"), donate_argnums=1)
def prefill(
    params: Params,
    state: Rows,
    tokens: Array,
    num_tokens: Array,
    rows: Array,
    starts: Array,
    prompt_lengths: Array,
    *,
    config: ModelConfig,
    mesh: Mesh | None,
) -> Rows:
    """The next chunks of some prompts.

    Args:
      tokens: int32 [P, T], of which int32 [P] num_tokens are real.
      rows: int32 [P], each at most once; one beyond the last is nobody's.
      starts: int32 [P], the slots of the first tokens.
    """
    cache = state.decode.cache
    cache = cache.replace(
        lengths=kv_cache.put_rows(cache.lengths, starts, rows),
        ntk_lengths=kv_cache.put_rows(cache.ntk_lengths, prompt_lengths, rows),
    )
    with _on(mesh):
        logits, cache = forward_cached(
            params,
            tokens,
            cache,
            config=config,
            rows=rows,
            num_tokens=num_tokens,
            prompt_lengths=prompt_lengths,
        )
    return state.replace(
        decode=state.decode.replace(cache=cache),
        prompt_logits=kv_cache.put_rows(state.prompt_logits, logits, rows),
    )


@functools.partial(jax.jit, donate_argnums=0)
def copy_row(rows: Rows, source: Array, target: Array, length: Array) -> Rows:
    """Gives `target` the first `length` slots of `source`, and its prompt's logits."""
    cache = rows.decode.cache

    def copy(x):
        row = jax.lax.dynamic_slice_in_dim(x, source, 1, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(x, row, target, axis=1)

    def copy_used(blocks):
        return tuple(
            jax.lax.fori_loop(
                0,
                (length > begin).astype(jnp.int32),
                lambda _, block: jax.tree.map(copy, block),
                block,
            )
            for begin, block in zip(kv_cache.starts(blocks)[:-1], blocks, strict=True)
        )

    cache = cache.replace(
        blocks=tuple(map(copy_used, cache.blocks)),
        lengths=cache.lengths.at[target].set(length),
        ntk_lengths=cache.ntk_lengths.at[target].set(cache.ntk_lengths[source]),
    )
    return rows.replace(
        decode=rows.decode.replace(cache=cache),
        prompt_logits=rows.prompt_logits.at[target].set(rows.prompt_logits[source]),
    )


@functools.partial(jax.jit, donate_argnums=0)
def begin(
    rows: Rows, row: Array, prompt: Array, length: Array, sampling: SamplingArrays
) -> tuple[Rows, Array, Array]:
    """The first token of a row whose prompt is in the cache.

    Args:
      prompt: int32 [S], padded with what is no id of the vocabulary.
      length: int32 []; of the prompt, the slots in use.
      sampling: of this row alone, [1] each.
    Returns:
      The state, the token (int32 []; -1: a stop id came at once) and its log-probability.
    """
    state = rows.decode
    seen = jax.lax.cond(
        sampling.repetition_penalty[0] != 1.0,
        lambda: jnp.zeros(state.seen.shape[1:], bool).at[prompt].set(True, mode="drop"),
        lambda: jnp.zeros(state.seen.shape[1:], bool),
    )
    one = DecodeState(
        cache=state.cache,  # which `take` does not look at
        last=jnp.zeros((1,), jnp.int32),
        counts=jnp.zeros((1,), jnp.int32),
        active=jnp.ones((1,), bool),
        seen=seen[None],
    )
    logits = jax.lax.dynamic_slice(
        rows.prompt_logits, (row, jnp.int32(0)), (1, rows.prompt_logits.shape[1])
    )
    one, token, logprob = loop.take(one, logits, sampling)
    cache = state.cache.replace(lengths=state.cache.lengths.at[row].set(length))
    state = state.replace(
        cache=cache,
        last=state.last.at[row].set(one.last[0]),
        counts=state.counts.at[row].set(one.counts[0]),
        active=state.active.at[row].set(one.active[0]),
        seen=state.seen.at[row].set(one.seen[0]),
    )
    return rows.replace(decode=state), token[0], logprob[0]


@functools.partial(jax.jit, static_argnames=("config", "mesh", "room"), donate_argnums=1)
def advance(
    params: Params,
    rows: Rows,
    active: Array,
    sampling: SamplingArrays,
    steps: Array,
    stop_early: Array,
    *,
    config: ModelConfig,
    mesh: Mesh | None,
    room: int,
) -> tuple[Rows, NewTokens, Array]:
    """loop.advance for the rows that the host calls active; also which of them are still."""
    state = rows.decode.replace(active=rows.decode.active & active)
    with _on(mesh):
        state, new = loop.advance(
            params, state, sampling, steps, stop_early, config=config, room=room
        )
    # A copy: what the next call is given to overwrite must not be what the host reads.
    return rows.replace(decode=state), new, state.active.copy()
