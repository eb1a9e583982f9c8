"""Choosing the next token: pure functions of logits.

Filters set what they exclude to -inf and compose; the usual order is `allow_below`,
`scale_temperature`, `keep_top_k`, `keep_top_p`, then `sample`. Every parameter is one number for
all rows or one per row, so that requests with different settings can share a batch.

B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.types import Array

_INT32 = np.iinfo(np.int32)
_GROUP = 128  # ids that `sample` draws among in its second step


def allow_below(logits_BV: Array, vocab_size: Array | int) -> Array:
    """Excludes the ids from `vocab_size` on: the padding rows of an embedding mean nothing."""
    ids_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)[None]
    return jnp.where(ids_1V < _per_row(vocab_size, jnp.int32, logits_BV), logits_BV, -jnp.inf)


def greedy(logits_BV: Array) -> Array:
    """The most probable id of each row, the lowest one where several tie; int32 [B].

    Two plain reductions, which a CPU does in vectors, unlike the pair of an argmax.
    """
    V = logits_BV.shape[1]
    best = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    ids = jnp.where(best, jnp.arange(V, dtype=jnp.int32)[None], jnp.int32(V - 1))
    return jnp.min(ids, axis=-1)


def scale_temperature(logits_BV: Array, temperature: Array | float) -> Array:
    """logits / temperature; float32 [B, V]. temperature > 0, one number or float32 [B]."""
    return logits_BV / _per_row(temperature, jnp.float32, logits_BV)


def keep_top_k(logits_BV: Array, k: Array | int) -> Array:
    """Excludes all but the k largest logits of each row; what ties with the k-th stays too.

    Args:
      logits_BV: float32 [B, V].
      k: 1 or more, one number or int32 [B]; k >= V keeps everything.
    """
    k_B1 = _per_row(k, jnp.int32, logits_BV)
    order_BV = _ordered(logits_BV)
    threshold_B1 = _largest_threshold(
        lambda middle_B1: (
            jnp.sum((order_BV >= middle_B1).astype(jnp.int32), axis=1, keepdims=True) >= k_B1
        ),
        jnp.full_like(k_B1, _INT32.min),
    )
    return jnp.where(order_BV >= threshold_B1, logits_BV, -jnp.inf)


def keep_top_p(logits_BV: Array, p: Array | float) -> Array:
    """Excludes all but the fewest most probable ids that together have probability p or more.

    What ties with the least probable of them stays too. The threshold is found by bisection, which
    is tens of times cheaper than sorting a real vocabulary; since it halves the range of float32
    bit patterns, and these are ordered like the probabilities, 32 steps find it exactly.

    Args:
      logits_BV: float32 [B, V]; -inf where excluded already.
      p: in (0, 1], one number or float32 [B]; 1 keeps everything.
    """
    p_B1 = _per_row(p, jnp.float32, logits_BV)
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
    """Ids seen before become less probable: logit / penalty above 0, logit * penalty below.

    Args:
      seen_BV: bool; what stands in the prompt or was produced.
      penalty: 1 or more, one number or float32 [B]; 1 changes nothing.
    """
    penalty_B1 = _per_row(penalty, jnp.float32, logits_BV)
    penalized_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return jnp.where(seen_BV, penalized_BV, logits_BV)


def sample(logits_BV: Array, keys_B: Array, step: Array | int) -> Array:
    """One id per row, drawn with the probabilities softmax(logits); int32 [B].

    Drawn in two steps, first a group of ids and then one of its ids, so that a large vocabulary
    costs a few hundred random numbers instead of one for every id.

    Args:
      keys_B: one random key per row (`row_keys`).
      step: int32, how many ids were drawn with these keys before, one number or [B]; a row's draw
        depends on its logits, its key and the step, and on nothing else in the batch.
    """
    B, V = logits_BV.shape
    groups = -(-V // _GROUP)
    logits_BGE = jnp.pad(
        logits_BV, ((0, 0), (0, groups * _GROUP - V)), constant_values=-jnp.inf
    ).reshape(B, groups, _GROUP)
    group_logits_BG = jax.nn.logsumexp(logits_BGE, axis=2)

    def draw(key, step, logits_GE, group_logits_G):
        first, second = jax.random.split(jax.random.fold_in(key, step))
        group = jax.random.categorical(first, group_logits_G).astype(jnp.int32)
        inside = jax.random.categorical(second, logits_GE[group]).astype(jnp.int32)
        return group * _GROUP + inside

    steps_B = jnp.broadcast_to(jnp.asarray(step, jnp.int32), (B,))
    return jax.vmap(draw)(keys_B, steps_B, logits_BGE, group_logits_BG)


def row_keys(seeds_B: Array, streams_B: Array) -> Array:
    """Random keys [B], one for each pair of a seed (uint32 [B]) and a stream (uint32 [B])."""
    return jax.vmap(lambda seed, stream: jax.random.fold_in(jax.random.key(seed), stream))(
        seeds_B, streams_B
    )


def _per_row(value, dtype, logits_BV: Array) -> Array:
    """One number or [B] -> [B, 1]."""
    return jnp.broadcast_to(jnp.asarray(value, dtype), logits_BV.shape[:1])[:, None]


def _ordered(x: Array) -> Array:
    """int32 numbers in the order of the float32 ones."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)  # -0 is 0
    return jnp.where(bits < 0, bits ^ jnp.int32(_INT32.max), bits)


def _largest_threshold(enough, low_B1: Array) -> Array:
    """The largest int32 for which `enough` holds, row by row; it holds for low_B1 or gives that.

    `enough` maps int32 [B, 1] to bool [B, 1] and must not become true again once it is false.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        ok = enough(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    high_B1 = jnp.full_like(low_B1, _INT32.max)
    return jax.lax.fori_loop(0, 32, halve, (low_B1, high_B1))[0]
