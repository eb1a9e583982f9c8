"""The mask representation of all backends: documents, causality and window as one interval.

With contiguous documents, causality and a window, query i sees the keys k_start[i] <= k <= i, and
key j is seen by the queries j <= q <= q_end[j]. One int32 per query (or per key) replaces the
comparison of segment ids, and its minimum and maximum over a tile determine exactly which tiles are
empty.

B batch, T query positions, S key positions.
"""

import jax
import jax.numpy as jnp

from qwen_jax.types import Array


def query_index(B: int, T: int, S: int, positions: Array | None) -> Array:
    """Returns the index of each query on the key axis, int32 [B, T]; by default the last T of S."""
    if positions is not None and T != S:
        return positions
    return jnp.broadcast_to((jnp.arange(T, dtype=jnp.int32) + (S - T))[None], (B, T))


def first_key(
    B: int,
    T: int,
    S: int,
    *,
    segment_ids: Array | None,
    positions: Array | None,
    window: Array | int | None,
) -> Array:
    """Returns k_start, int32 [B, T]: the first key that each query sees; S for padding, which sees
    none.

    Args:
      segment_ids: int32 [B, T] or None, only with T == S; 0 is padding.
      positions: see kernels.attention.
      window: number of tokens that a query sees, including itself; None: no limit.
    """
    start = jnp.zeros((B, T), jnp.int32)
    if segment_ids is not None:
        start = _document_start(segment_ids)
    if window is not None:
        last = query_index(B, T, S, positions)
        start = jnp.maximum(start, last + 1 - jnp.asarray(window, jnp.int32))
    if segment_ids is not None:
        start = jnp.where(segment_ids == 0, jnp.int32(S), start)
    return start


def last_query(B: int, T: int, *, segment_ids: Array | None, window: Array | int | None) -> Array:
    """Returns q_end, int32 [B, T]: the last query that sees each key; -1 if none does."""
    end = jnp.full((B, T), T - 1, jnp.int32)
    if segment_ids is not None:  # a document's end is its start in reverse order
        end = T - 1 - _document_start(segment_ids[:, ::-1])[:, ::-1]
    if window is not None:
        index = jnp.arange(T, dtype=jnp.int32)[None]
        # Clip first, so a window of 2^31 - 1, which means no limit, does not overflow.
        reach = jnp.minimum(jnp.asarray(window, jnp.int32), jnp.int32(T)) - 1
        end = jnp.minimum(end, index + reach)
    if segment_ids is not None:
        end = jnp.where(segment_ids == 0, jnp.int32(-1), end)
    return end


def _document_start(segment_ids: Array) -> Array:
    """Returns the start of the run of equal ids that contains each token, int32 [B, T]."""
    index = jnp.broadcast_to(
        jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None], segment_ids.shape
    )
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jax.lax.cummax(jnp.where(segment_ids != before, index, 0), axis=1)
