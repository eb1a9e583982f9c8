"""Sampling the next token: pure functions of logits.

Filters set excluded logits to -inf and compose. The usual order is `allow_below`,
`scale_temperature`, `keep_top_k`, `keep_top_p`, then `sample`. Every parameter is one number for
the batch or one per sequence, so requests with different settings can share a batch.

B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.types import Array

_INT32 = np.iinfo(np.int32)
_GROUP = 128  # ids among which `sample` chooses in its second step


def allow_below(logits_BV: Array, vocab_size: Array | int) -> Array:
    """Excludes the ids from `vocab_size` on, which are padding of the embedding."""
    ids_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)[None]
    return jnp.where(ids_1V < _per_sequence(vocab_size, jnp.int32, logits_BV), logits_BV, -jnp.inf)


def greedy(logits_BV: Array) -> Array:
    """Returns the most probable id of each sequence, the lowest of ties; int32 [B].

    A CPU vectorizes these two plain reductions, but not the paired one of an argmax.
    """
    V = logits_BV.shape[1]
    best = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    ids = jnp.where(best, jnp.arange(V, dtype=jnp.int32)[None], jnp.int32(V - 1))
    return jnp.min(ids, axis=-1)


def scale_temperature(logits_BV: Array, temperature: Array | float) -> Array:
    """Returns logits / temperature, float32 [B, V]; temperature > 0, one number or float32 [B]."""
    return logits_BV / _per_sequence(temperature, jnp.float32, logits_BV)


def keep_top_k(logits_BV: Array, k: Array | int) -> Array:
    """Excludes all but the k largest logits of each sequence; ties with the k-th are kept.

    Args:
      logits_BV: float32 [B, V].
      k: 1 or more, one number or int32 [B]; k >= V keeps everything.
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
    """Excludes all but the most probable ids, as few as have probability p or more together.

    Ties with the least probable of them are kept. The threshold is found by bisection, which is
    tens of times cheaper than sorting a real vocabulary. It halves the range of float32 bit
    patterns, which are ordered like the probabilities, so 32 steps find it exactly.

    Args:
      logits_BV: float32 [B, V]; -inf where already excluded.
      p: in (0, 1], one number or float32 [B]; 1 keeps everything.
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
    """Makes ids that were seen before less probable.

    A logit becomes logit / penalty if it is positive, and logit * penalty otherwise.

    Args:
      seen_BV: bool; ids of the prompt and the completion.
      penalty: 1 or more, one number or float32 [B]; 1 changes nothing.
    """
    penalty_B1 = _per_sequence(penalty, jnp.float32, logits_BV)
    penalized_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return jnp.where(seen_BV, penalized_BV, logits_BV)


def sample(logits_BV: Array, keys_B: Array, step: Array | int) -> Array:
    """Samples one id per sequence with the probabilities softmax(logits); int32 [B].

    The first step samples a group of ids, the second one of its ids. A large vocabulary then needs
    a few hundred random numbers instead of one for every id.

    Args:
      keys_B: one random key per sequence (`sequence_keys`).
      step: int32, how many ids were sampled with these keys before, one number or [B]. A sample
        depends only on its sequence's logits, key and step, not on the rest of the batch.
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
    """Broadcasts one number or [B] to [B, 1]."""
    return jnp.broadcast_to(jnp.asarray(value, dtype), logits_BV.shape[:1])[:, None]


def _ordered(x: Array) -> Array:
    """Returns int32 numbers that are ordered like the float32 numbers x."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)  # -0 is 0
    return jnp.where(bits < 0, bits ^ jnp.int32(_INT32.max), bits)


def _largest_threshold(enough, low_B1: Array) -> Array:
    """Returns the largest int32 above low_B1 for which `enough` holds, else low_B1, per sequence.

    `enough` maps int32 [B, 1] to bool [B, 1] and must not become true again once it is false.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        ok = enough(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    high_B1 = jnp.full_like(low_B1, _INT32.max)
    return jax.lax.fori_loop(0, 32, halve, (low_B1, high_B1))[0]
