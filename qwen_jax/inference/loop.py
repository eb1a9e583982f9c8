"""The decoding loop: sample a token for every sequence, record it, compute the next logits.

Fixed batches (decode.generate), the continuous batch (engine) and rollouts run this one loop. Parts
of the sampler that no sequence needs are skipped at run time, without recompilation.

B sequences, R maximum number of new tokens in one call, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from qwen_jax.config import ModelConfig
from qwen_jax.inference import logits as filters
from qwen_jax.inference.decoder.cached_forward import forward_cached
from qwen_jax.inference.sampling import SamplingArrays
from qwen_jax.types import Array, KVCache, Params


class DecodeState(PyTreeNode):
    cache: KVCache
    last: Array  # int32 [B]; the latest token, not yet in the cache
    counts: Array  # int32 [B]; number of new tokens so far, excluding a stop id
    active: Array  # bool [B]; true until the sequence finishes
    seen: Array  # bool [B, V]; ids that the repetition penalty applies to
    # int32 [B, V]; how often each id is in the completion. None: no presence or frequency penalty.
    output_counts: Array | None = None


class Constraints(PyTreeNode):
    """What the next token of each sequence may be; sequences without a grammar may have any."""

    allowed: Array  # uint32 [B, ceil(V / 32)]; a bit per id, as logits.allow
    constrained: Array  # bool [B]
    quota: Array  # int32 [B]; maximum number of tokens in this call


class NewTokens(PyTreeNode):
    """The new tokens of one call; a sequence is padded with -1 after its last token."""

    tokens: Array  # int32 [B, R]
    logprobs: Array  # float32 [B, R]; under the model's softmax, before any sampling filter


def choose(
    logits_BV: Array,
    seen_BV: Array,
    counts_B: Array,
    sampling: SamplingArrays,
    output_counts_BV: Array | None = None,
    constraints: Constraints | None = None,
) -> tuple[Array, Array]:
    """Samples the next token of each sequence, int32 [B], and its log-probability, float32 [B].

    In vLLM's order: grammar, logit_bias, penalties, then what filters probabilities.
    """

    def only_if(needed_B, change, logits):
        return jax.lax.cond(jnp.any(needed_B), change, lambda x: x, logits)

    logits_BV = filters.allow_below(logits_BV, sampling.vocab_size)
    sampled_B = sampling.temperature > 0

    def sample(x):
        x = filters.scale_temperature(x, jnp.where(sampled_B, sampling.temperature, 1.0))
        x = only_if(
            sampled_B & (sampling.top_k < x.shape[1]),
            lambda x: filters.keep_top_k(x, sampling.top_k),
            x,
        )
        x = only_if(
            sampled_B & (sampling.top_p < 1.0), lambda x: filters.keep_top_p(x, sampling.top_p), x
        )
        return filters.sample(x, filters.sequence_keys(sampling.seeds, sampling.streams), counts_B)

    penalized_BV = logits_BV
    if constraints is not None:
        penalized_BV = only_if(
            constraints.constrained,
            lambda x: filters.allow(x, constraints.allowed),
            penalized_BV,
        )
    if sampling.bias is not None:
        penalized_BV = only_if(
            sampling.bias != 0,
            lambda x: filters.add_bias(x, sampling.bias_ids, sampling.bias),
            penalized_BV,
        )
    penalized_BV = only_if(
        sampling.repetition_penalty != 1.0,
        lambda x: filters.penalize_repetition(x, seen_BV, sampling.repetition_penalty),
        penalized_BV,
    )
    if output_counts_BV is not None:
        presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
        penalized_BV = only_if(
            (presence != 0) | (frequency != 0),
            lambda x: filters.penalize_output(x, output_counts_BV, presence, frequency),
            penalized_BV,
        )
    best_B = filters.greedy(penalized_BV)
    chosen_B = jax.lax.cond(
        jnp.any(sampled_B),
        lambda x: jnp.where(sampled_B, sample(x), best_B),
        lambda x: best_B,
        penalized_BV,
    )
    chosen_logits_B = jnp.take_along_axis(logits_BV, chosen_B[:, None], axis=1)[:, 0]
    return chosen_B, chosen_logits_B - jax.nn.logsumexp(logits_BV, axis=1)


def take(
    state: DecodeState,
    logits_BV: Array,
    sampling: SamplingArrays,
    constraints: Constraints | None = None,
):
    """Samples one token per active sequence: new state, tokens [B] (-1: none), logprobs [B]."""
    chosen_B, logprobs_B = choose(
        logits_BV, state.seen, state.counts, sampling, state.output_counts, constraints
    )
    stops_B = jnp.any(chosen_B[:, None] == sampling.stop_ids, axis=1)
    adds_B = state.active & ~stops_B
    counts_B = state.counts + adds_B.astype(jnp.int32)
    index_B = jnp.arange(chosen_B.shape[0], dtype=jnp.int32)
    if state.output_counts is not None:
        output_counts = state.output_counts.at[index_B, chosen_B].add(adds_B.astype(jnp.int32))
        state = state.replace(output_counts=output_counts)
    state = state.replace(
        last=chosen_B,
        counts=counts_B,
        active=adds_B & (counts_B < sampling.limits),
        seen=state.seen.at[index_B, chosen_B].max(adds_B),
    )
    return state, jnp.where(adds_B, chosen_B, -1), logprobs_B


def advance(
    params: Params,
    state: DecodeState,
    sampling: SamplingArrays,
    steps: Array,
    stop_early: Array,
    *,
    config: ModelConfig,
    room: int,
    constraints: Constraints | None = None,
) -> tuple[DecodeState, NewTokens]:
    """Decodes up to `steps` more tokens for every active sequence.

    Args:
      steps: int32 []; number of tokens to decode, at most `room`.
      stop_early: bool []; whether to return as soon as a sequence finishes, to free its slot.
      room: the maximum number of new tokens, a static shape.
      constraints: what the next token may be. A grammar allows other tokens after each one, so its
        sequence has a quota of one token in a call, while the others go on.
    """
    B = state.last.shape[0]
    before_B = state.active
    new = NewTokens(
        tokens=jnp.full((B, room), -1, jnp.int32), logprobs=jnp.zeros((B, room), jnp.float32)
    )

    def unfinished(carry):
        step, state, _ = carry
        any_finished = jnp.any(before_B & ~state.active)
        return (step < steps) & jnp.any(running(step, state)) & ~(stop_early & any_finished)

    def running(step, state):
        if constraints is None:
            return state.active
        return state.active & (step < constraints.quota)

    def next_token(carry):
        step, state, new = carry
        running_B = running(step, state)
        logits_BV, cache = forward_cached(
            params,
            state.last[:, None],
            state.cache,
            config=config,
            num_tokens=running_B.astype(jnp.int32),
        )
        taken, tokens_B, logprobs_B = take(
            state.replace(cache=cache, active=running_B), logits_BV, sampling, constraints
        )
        if constraints is not None:  # a sequence that waits for its next call stays as it is
            taken = taken.replace(
                active=jnp.where(running_B, taken.active, state.active),
                last=jnp.where(running_B, taken.last, state.last),
            )
        state = taken
        new = NewTokens(
            tokens=jax.lax.dynamic_update_slice(new.tokens, tokens_B[:, None], (0, step)),
            logprobs=jax.lax.dynamic_update_slice(new.logprobs, logprobs_B[:, None], (0, step)),
        )
        return step + jnp.int32(1), state, new

    _, state, new = jax.lax.while_loop(unfinished, next_token, (jnp.int32(0), state, new))
    return state, new
