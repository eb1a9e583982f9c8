"""Forward attention for TPUs: an online base-2 softmax over key tiles.

B batch, N heads, K key-value heads, P padded positions, H head size.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qwen_jax.kernels.tpu.visited_tiles import (
    HIDDEN,
    LANES,
    NO_MAXIMUM,
    Bounds,
    Tiling,
    is_unmasked,
    precision,
)
from qwen_jax.types import Array

# The log-sum-exp of a query that sees no key: 2^(s - this) is 0 in the backward pass.
NOTHING_VISIBLE = 1e30


def forward(
    q_BNPH: Array,
    k_BKPH: Array,
    v_BKPH: Array,
    k_start_BP: Array,
    k_end_BP: Array | None,
    bounds: Bounds,
    *,
    tiling: Tiling,
    dtype,
    interpret,
) -> tuple[Array, Array]:
    """Returns out [B, N, P, H] in `dtype` and the base-2 log-sum-exp, float32 [B, N, 1, P].

    Args:
      q_BNPH: queries, pre-scaled by scale * log2(e).
      k_end_BP: the last key that each query sees; None: its own position.
    """
    B, N, P, H = q_BNPH.shape
    group = N // k_BKPH.shape[1]
    queries, keys = tiling.queries, tiling.keys

    def of_query(b, n, i, j, *bounds):
        return b, n, i, 0

    def of_key(b, n, i, j, first, last, *unmasked):
        at = b * queries + i
        # A skipped tile maps to one that is already loaded, which avoids a fetch.
        return b, n // group, jnp.clip(j, first[at], jnp.maximum(last[at], first[at])), 0

    query = pl.BlockSpec((None, None, tiling.query, H), of_query)
    key = pl.BlockSpec((None, None, tiling.key, H), of_key)
    row = pl.BlockSpec((None, 1, tiling.query), lambda b, n, i, j, *bounds: (b, 0, i))
    lse = pl.BlockSpec((None, None, 1, tiling.query), lambda b, n, i, j, *bounds: (b, n, 0, i))
    rows = [x[:, None] for x in (k_start_BP, k_end_BP) if x is not None]
    return pl.pallas_call(
        functools.partial(_kernel, tiling=tiling, causal=k_end_BP is None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, N, queries, keys),
            in_specs=[row] * len(rows) + [query, key, key],
            out_specs=[query, lse],
            scratch_shapes=[
                pltpu.VMEM((tiling.query, LANES), jnp.float32),
                pltpu.VMEM((tiling.query, LANES), jnp.float32),
                pltpu.VMEM((tiling.query, H), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q_BNPH.shape, dtype),
            jax.ShapeDtypeStruct((B, N, 1, P), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret or False,
        name="attention_forward",
    )(
        bounds.first_key,
        bounds.last_key,
        bounds.first_unmasked,
        bounds.last_unmasked,
        *rows,
        q_BNPH,
        k_BKPH,
        v_BKPH,
    )


def _kernel(
    first, last, first_unmasked, last_unmasked, k_start, *refs, tiling: Tiling, causal: bool
):
    """Processes one tile of queries and one tile of keys.

    `top` and `acc` are per query (with top repeated in every lane); `total` is a partial sum per
    query and lane.
    """
    k_end, q, k, v, out, lse, top, total, acc = (None, *refs) if causal else refs
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    at = b * tiling.queries + i
    unmasked_here = is_unmasked(j, at, first_unmasked, last_unmasked)
    visited = (j >= first[at]) & (j <= last[at])

    @pl.when(j == 0)
    def _():
        top[...] = jnp.full_like(top, NO_MAXIMUM)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(visited & unmasked_here)
    def _():
        _tile(q, k, v, top, total, acc, tiling, None)

    @pl.when(visited & ~unmasked_here)
    def _():
        # [1, query] -> [query, LANES]: a row becomes a column.
        start = jnp.broadcast_to(k_start[...], (LANES, tiling.query)).T
        if k_end is None:
            end = i * tiling.query + jax.lax.broadcasted_iota(jnp.int32, start.shape, 0)
        else:
            end = jnp.broadcast_to(k_end[...], (LANES, tiling.query)).T
        _tile(
            q,
            k,
            v,
            top,
            total,
            acc,
            tiling,
            (start - j * tiling.key, jnp.maximum(end - start + 1, 0).astype(jnp.uint32)),
        )

    @pl.when(j == tiling.keys - 1)
    def _():
        row_total = jnp.sum(total[...], axis=1, keepdims=True)
        seen = row_total > 0
        out[...] = (acc[...] / jnp.where(seen, row_total, 1.0)).astype(out.dtype)
        row_lse = jnp.where(
            seen, top[:, :1] + jnp.log2(jnp.where(seen, row_total, 1.0)), NOTHING_VISIBLE
        )
        lse[...] = jnp.broadcast_to(row_lse, (tiling.query, LANES)).T[:1]


def _tile(q, k, v, top, total, acc, tiling: Tiling, interval) -> None:
    """Accumulates the keys of a tile in parts: the matmuls of one part overlap the exp2 of another.

    Args:
      interval: the first key that each query sees, relative to the tile's first key, int32, and the
        number of keys it sees, uint32; [query, LANES] each, constant along each row. None: every
        query sees all keys.
    """
    exact = precision(q.dtype)
    H = v.shape[1]
    for begin, size in tiling.parts(masked=interval is not None):
        part = pl.ds(begin, size)
        scores = jax.lax.dot_general(
            q[...],
            k[part, :],
            (((1,), (1,)), ((), ())),
            precision=exact,
            preferred_element_type=jnp.float32,
        )
        if interval is not None:
            key = begin + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            start, count = (_across(x, size) for x in interval)
            # One comparison checks both bounds: keys before the first wrap around to large values.
            scores = jnp.where((key - start).astype(jnp.uint32) < count, scores, HIDDEN)
        old = top[...]
        new = jnp.maximum(old, jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.exp2(scores - _across(new, size))
        fade = jnp.exp2(old - new)
        top[...] = new
        total[...] = fade * total[...] + sum(
            weights[:, lane : lane + LANES] for lane in range(0, size, LANES)
        )
        acc[...] = _across(fade, H) * acc[...] + jax.lax.dot_general(
            weights.astype(v.dtype),
            v[part, :],
            (((1,), (0,)), ((), ())),
            precision=exact,
            preferred_element_type=jnp.float32,
        )


def _across(x: Array, width: int) -> Array:
    """Broadcasts [rows, LANES], constant along each row, to [rows, width]."""
    if width <= LANES:
        return x[:, :width]
    return jnp.concatenate([x] * (width // LANES), axis=1)
