"""Sampling the next token: pure functions of logits.

Filters set excluded logits to -inf and compose. The usual order is `allow_below`,
`scale_temperature`, `keep_top_k`, `keep_top_p`, then `sample`. Every parameter is a scalar or has
one value per sequence, so requests with different settings can share a batch.

B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.types import Array

_INT32 = np.iinfo(np.int32)
_GROUP = 128  # ids per group; `sample` samples a group, then an id in it


def allow_below(logits_BV: Array, vocab_size: Array | int) -> Array:
    """Excludes ids at or above `vocab_size`, which are embedding padding."""
    ids_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)[None]
    return jnp.where(ids_1V < _per_sequence(vocab_size, jnp.int32, logits_BV), logits_BV, -jnp.inf)


def greedy(logits_BV: Array) -> Array:
    """Returns the most probable id of each sequence, int32 [B]; of ties, the lowest id.

    On a CPU these two plain reductions are vectorized; the paired reduction of an argmax is not.
    """
    V = logits_BV.shape[1]
    best = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    ids = jnp.where(best, jnp.arange(V, dtype=jnp.int32)[None], jnp.int32(V - 1))
    return jnp.min(ids, axis=-1)


def scale_temperature(logits_BV: Array, temperature: Array | float) -> Array:
    """Returns logits / temperature, float32 [B, V]; temperature > 0, a scalar or float32 [B]."""
    return logits_BV / _per_sequence(temperature, jnp.float32, logits_BV)


def keep_top_k(logits_BV: Array, k: Array | int) -> Array:
    """Excludes all but the k largest logits of each sequence; ties with the k-th are kept.

    Args:
      logits_BV: float32 [B, V].
      k: 1 or more, a scalar or int32 [B]; k >= V keeps everything.
    """
    k_B1 = _per_sequence(k, jnp.int32, logits_BV)
    order_BV = _ordered(logits_BV)
    threshold_B1 = _largest_threshold(
        lambda middle_B1: (
            jnp.sum((order_BV >= middle_B1).astype(jnp.int32), axis=1, keepdims=True) >= k_B1
        ),
        jnp.full_like(k_B1, _INT32.min),
    )
    return jnp.where(order_BV >= threshold_B1, logits_BV, -jnp.inf)


def keep_top_p(logits_BV: Array, p: Array | float) -> Array:
    """Excludes all but the smallest set of most probable ids with total probability p or more.

    Ids that tie with the least probable one in the set are kept. The threshold is found by
    bisection, which is tens of times cheaper than sorting a real vocabulary. It bisects float32 bit
    patterns, whose integer order is that of the probabilities, so 32 steps find it exactly.

    Args:
      logits_BV: float32 [B, V]; -inf where already excluded.
      p: in (0, 1], a scalar or float32 [B]; 1 keeps everything.
    """
    p_B1 = _per_sequence(p, jnp.float32, logits_BV)
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    order_BV = jax.lax.bitcast_convert_type(probs_BV, jnp.int32)  # no probability is negative
    threshold_B1 = _largest_threshold(
        lambda middle_B1: (
            jnp.sum(jnp.where(order_BV >= middle_B1, probs_BV, 0.0), axis=1, keepdims=True) >= p_B1
        ),
        jnp.zeros(p_B1.shape, jnp.int32),
    )
    return jnp.where((order_BV >= threshold_B1) | (p_B1 >= 1.0), logits_BV, -jnp.inf)


def penalize_repetition(logits_BV: Array, seen_BV: Array, penalty: Array | float) -> Array:
    """Makes ids less probable that were seen before.

    A logit becomes logit / penalty if it is positive, and logit * penalty otherwise.

    Args:
      seen_BV: bool; true for ids in the prompt or in the completion so far.
      penalty: positive, a scalar or float32 [B]; above 1 penalizes, 1 has no effect.
    """
    penalty_B1 = _per_sequence(penalty, jnp.float32, logits_BV)
    penalized_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return jnp.where(seen_BV, penalized_BV, logits_BV)


def allow(logits_BV: Array, allowed_BW: Array) -> Array:
    """Excludes ids whose bit is not set.

    Args:
      allowed_BW: uint32 [B, ceil(V / 32)]; bit i of word w is id 32 w + i.
    """
    ids_V = jnp.arange(logits_BV.shape[1], dtype=jnp.uint32)
    bits_BV = (allowed_BW[:, ids_V // 32] >> (ids_V % 32)[None]) & 1
    return jnp.where(bits_BV == 1, logits_BV, -jnp.inf)


def add_bias(logits_BV: Array, ids_BK: Array, bias_BK: Array) -> Array:
    """Adds float32 [B, K] to the logits of these ids, int32 [B, K]; ids past V are dropped."""
    rows_B1 = jnp.arange(logits_BV.shape[0], dtype=jnp.int32)[:, None]
    return logits_BV.at[rows_B1, ids_BK].add(bias_BK, mode="drop")


def penalize_output(
    logits_BV: Array, counts_BV: Array, presence: Array | float, frequency: Array | float
) -> Array:
    """Subtracts OpenAI's penalties: presence once, and frequency for each occurrence.

    Args:
      counts_BV: int32; how often each id is in the completion so far. The prompt does not count.
      presence, frequency: a scalar or float32 [B].
    """
    presence_B1 = _per_sequence(presence, jnp.float32, logits_BV)
    frequency_B1 = _per_sequence(frequency, jnp.float32, logits_BV)
    present_BV = (counts_BV > 0).astype(jnp.float32)
    return logits_BV - frequency_B1 * counts_BV.astype(jnp.float32) - presence_B1 * present_BV


def sample(logits_BV: Array, keys_B: Array, step: Array | int) -> Array:
    """Samples one id per sequence from softmax(logits); returns int32 [B].

    First samples a group of ids, then an id in the group. A large vocabulary therefore needs a few
    hundred random numbers instead of one per id.

    Args:
      keys_B: one random key per sequence (`sequence_keys`).
      step: number of ids already sampled with these keys; int32, a scalar or [B]. A sample depends
        only on its sequence's logits, key and step, not on the rest of the batch.
    """
    B, V = logits_BV.shape
    groups = -(-V // _GROUP)
    logits_BGE = jnp.pad(
        logits_BV, ((0, 0), (0, groups * _GROUP - V)), constant_values=-jnp.inf
    ).reshape(B, groups, _GROUP)
    group_logits_BG = jax.nn.logsumexp(logits_BGE, axis=2)

    def sample_one(key, step, logits_GE, group_logits_G):
        first, second = jax.random.split(jax.random.fold_in(key, step))
        group = jax.random.categorical(first, group_logits_G).astype(jnp.int32)
        inside = jax.random.categorical(second, logits_GE[group]).astype(jnp.int32)
        return group * _GROUP + inside

    steps_B = jnp.broadcast_to(jnp.asarray(step, jnp.int32), (B,))
    return jax.vmap(sample_one)(keys_B, steps_B, logits_BGE, group_logits_BG)


def sequence_keys(seeds_B: Array, streams_B: Array) -> Array:
    """Returns random keys [B], one per pair of a seed (uint32 [B]) and a stream (uint32 [B])."""
    return jax.vmap(lambda seed, stream: jax.random.fold_in(jax.random.key(seed), stream))(
        seeds_B, streams_B
    )


def _per_sequence(value, dtype, logits_BV: Array) -> Array:
    """Broadcasts a scalar or [B] to [B, 1]."""
    return jnp.broadcast_to(jnp.asarray(value, dtype), logits_BV.shape[:1])[:, None]


def _ordered(x: Array) -> Array:
    """Maps float32 values to int32 values with the same order."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)  # -0.0 becomes 0.0
    return jnp.where(bits < 0, bits ^ jnp.int32(_INT32.max), bits)


def _largest_threshold(enough, low_B1: Array) -> Array:
    """Returns, per sequence, the largest int32 above low_B1 where `enough` holds, else low_B1.

    `enough` maps int32 [B, 1] to bool [B, 1]. It must be monotonic: once false, it stays false for
    all larger values.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        ok = enough(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    high_B1 = jnp.full_like(low_B1, _INT32.max)
    return jax.lax.fori_loop(0, 32, halve, (low_B1, high_B1))[0]
