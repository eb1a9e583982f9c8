"""The engine's device programs: prefill, copy a slot, sample the first token, decode.

Each program is jitted once, with fixed shapes and shardings and a donated state. A running engine
therefore never recompiles and never copies the cache.

B decode slots, P prompts of T tokens prefilled at a time, S cache positions, V vocabulary.
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
from qwen_jax.inference.loop import Constraints, DecodeState, NewTokens
from qwen_jax.inference.sampling import SamplingArrays
from qwen_jax.parallel.sharding import constrain, replicated, use_layout
from qwen_jax.types import Array, Params


class BatchState(PyTreeNode):
    """The device-side state of the engine."""

    decode: DecodeState
    prompt_logits: Array  # float32 [B, V]; logits after the last token of each slot's prompt


def _on(mesh: Mesh | None):
    return contextlib.nullcontext() if mesh is None else use_layout(mesh)


def _sharded(state: BatchState, mesh: Mesh | None) -> BatchState:
    """Constrains all arrays but the cache's entries, whose shardings kv_cache constrains.

    The compiler would otherwise choose others for a program's outputs than for its inputs, and the
    next call would compile again.
    """
    decode, cache = state.decode, state.decode.cache
    assert decode.output_counts is not None, "the engine always counts"
    with _on(mesh):
        return BatchState(
            decode=decode.replace(
                cache=cache.replace(
                    lengths=constrain(cache.lengths, "batch"),
                    ntk_lengths=constrain(cache.ntk_lengths, "batch"),
                ),
                last=constrain(decode.last, "batch"),
                counts=constrain(decode.counts, "batch"),
                active=constrain(decode.active, "batch"),
                seen=constrain(decode.seen, "batch", "act_vocab"),
                output_counts=constrain(decode.output_counts, "batch", "act_vocab"),
            ),
            prompt_logits=constrain(state.prompt_logits, "batch", "act_vocab"),
        )


@functools.partial(
    jax.jit,
    static_argnames=("config", "mesh", "num_slots", "max_length", "cache_dtype", "layer_by_layer"),
)
def init_batch(
    *,
    config: ModelConfig,
    mesh: Mesh | None,
    num_slots: int,
    max_length: int,
    cache_dtype: str | None,
    layer_by_layer: bool,
) -> BatchState:
    """Returns a batch whose slots are all empty and idle."""
    with _on(mesh):
        cache = kv_cache.init_cache(
            config, num_slots, max_length, dtype=cache_dtype, layer_by_layer=layer_by_layer
        )

    def zeros():
        return jnp.zeros((num_slots,), jnp.int32)

    state = BatchState(
        decode=DecodeState(
            cache=cache,
            last=zeros(),
            counts=zeros(),
            active=zeros() > 0,
            seen=jnp.zeros((num_slots, config.vocab_size), bool),
            output_counts=jnp.zeros((num_slots, config.vocab_size), jnp.int32),
        ),
        prompt_logits=jnp.zeros((num_slots, config.vocab_size), jnp.float32),
    )
    return _sharded(state, mesh)


@functools.partial(jax.jit, static_argnames=("config", "mesh"), donate_argnums=1)
def prefill(
    params: Params,
    state: BatchState,
    tokens: Array,
    num_tokens: Array,
    slots: Array,
    starts: Array,
    prompt_lengths: Array,
    *,
    config: ModelConfig,
    mesh: Mesh | None,
) -> BatchState:
    """Computes the next chunk of each of several prompts.

    Args:
      tokens: int32 [P, T], of which int32 [P] num_tokens are real.
      slots: int32 [P], distinct; an index past the last slot is padding.
      starts: int32 [P], the cache position of each chunk's first token.
      prompt_lengths: int32 [P], the lengths of the full prompts.
    """
    cache = state.decode.cache
    cache = cache.replace(
        lengths=kv_cache.put_slots(cache.lengths, starts, slots),
        ntk_lengths=kv_cache.put_slots(cache.ntk_lengths, prompt_lengths, slots),
    )
    with _on(mesh):
        logits, cache = forward_cached(
            params,
            tokens,
            cache,
            config=config,
            slots=slots,
            num_tokens=num_tokens,
            prompt_lengths=prompt_lengths,
        )
    state = state.replace(
        decode=state.decode.replace(cache=cache),
        prompt_logits=kv_cache.put_slots(state.prompt_logits, logits, slots),
    )
    return _sharded(state, mesh)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def copy_slot(
    state: BatchState, source: Array, target: Array, length: Array, *, mesh: Mesh | None
) -> BatchState:
    """Copies the first `length` cache positions and the prompt logits of `source` to `target`."""
    cache = state.decode.cache

    def copy(x):
        entries = jax.lax.dynamic_slice_in_dim(x, source, 1, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(x, entries, target, axis=1)

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
    state = state.replace(
        decode=state.decode.replace(cache=cache),
        prompt_logits=state.prompt_logits.at[target].set(state.prompt_logits[source]),
    )
    return _sharded(state, mesh)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def sample_first(
    state: BatchState,
    slot: Array,
    prompt: Array,
    length: Array,
    sampling: SamplingArrays,
    constraints: Constraints,
    *,
    mesh: Mesh | None,
) -> tuple[BatchState, Array, Array]:
    """Samples the first token of a slot whose prompt is in the cache.

    Args:
      prompt: int32 [S], padded with an id outside the vocabulary.
      length: int32 []; the prompt's length in the cache.
      sampling, constraints: those of this slot only, arrays of shape [1] or [1, any].

    Returns:
      The state, the token (int32 []; -1: the first token was a stop id) and its log-probability.
    """
    decode = state.decode
    seen = jax.lax.cond(
        sampling.repetition_penalty[0] != 1.0,
        lambda: jnp.zeros(decode.seen.shape[1:], bool).at[prompt].set(True, mode="drop"),
        lambda: jnp.zeros(decode.seen.shape[1:], bool),
    )
    one = DecodeState(
        cache=decode.cache,  # `take` does not read it
        last=jnp.zeros((1,), jnp.int32),
        counts=jnp.zeros((1,), jnp.int32),
        active=jnp.ones((1,), bool),
        seen=seen[None],
        output_counts=jnp.zeros((1, decode.seen.shape[1]), jnp.int32),
    )
    logits = jax.lax.dynamic_slice(
        state.prompt_logits, (slot, jnp.int32(0)), (1, state.prompt_logits.shape[1])
    )
    one, token, logprob = loop.take(one, logits, sampling, constraints)
    assert decode.output_counts is not None and one.output_counts is not None
    cache = decode.cache.replace(lengths=decode.cache.lengths.at[slot].set(length))
    decode = decode.replace(
        cache=cache,
        last=decode.last.at[slot].set(one.last[0]),
        counts=decode.counts.at[slot].set(one.counts[0]),
        active=decode.active.at[slot].set(one.active[0]),
        seen=decode.seen.at[slot].set(one.seen[0]),
        output_counts=decode.output_counts.at[slot].set(one.output_counts[0]),
    )
    with _on(mesh):
        chosen = replicated((token[0], logprob[0]))
    return _sharded(state.replace(decode=decode), mesh), *chosen


@functools.partial(jax.jit, static_argnames=("config", "mesh", "room"), donate_argnums=1)
def advance(
    params: Params,
    state: BatchState,
    active: Array,
    sampling: SamplingArrays,
    constraints: Constraints,
    steps: Array,
    stop_early: Array,
    *,
    config: ModelConfig,
    mesh: Mesh | None,
    room: int,
) -> tuple[BatchState, NewTokens, Array]:
    """Runs loop.advance on the slots in `active`; also returns the slots that are still active."""
    decode = state.decode.replace(active=state.decode.active & active)
    with _on(mesh):
        decode, new = loop.advance(
            params,
            decode,
            sampling,
            steps,
            stop_early,
            config=config,
            room=room,
            constraints=constraints,
        )
    # A copy: the next call donates the state while the host still reads this array.
    with _on(mesh):
        new, still_active = replicated((new, decode.active.copy()))
    return _sharded(state.replace(decode=decode), mesh), new, still_active
