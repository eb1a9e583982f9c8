"""Backward attention for TPUs, fused: one pass over the tiles makes dq, dk and dv.

Scores are computed keys first ([key, query]), so that each query's log-sum-exp, delta and mask lie
along the lanes as they are stored. dq of a chunk of queries stays in VMEM, transposed, over all key
tiles; dk and dv of a key tile are summed there over the queries and over the group of heads. A row
longer than a chunk gives dk and dv in one piece for each chunk, which the caller sums.

B batch, N heads, K key-value heads, G = N / K, P padded positions, H head size, C chunks.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qwen_jax.kernels.tpu_tiles import HIDDEN, Bounds, Tiling, is_whole, precision
from qwen_jax.types import Array


def backward(q_BNPH: Array, k_BKPH: Array, v_BKPH: Array, dout_BNPH: Array, lse_BN1P: Array,
             delta_BN1P: Array, k_start_BP: Array, bounds: Bounds, *, tiling: Tiling, chunk: int,
             interpret) -> tuple[Array, Array, Array]:
    """dq [B, N, P, H], of scores = q k in base e; dk of the same, [B, K, P, H]; dv [B, K, P, H].

    Args:
      q_BNPH: times scale * log2(e), as in the forward pass; dk is still to be multiplied by ln 2.
      lse_BN1P: base 2.
      delta_BN1P: sum over H of dout * out, float32.
      chunk: queries (of a whole group of heads) whose dq may stay in VMEM.
    """
    B, N, P, H = q_BNPH.shape
    K = k_BKPH.shape[1]
    G = N // K
    tiles = max(1, min(tiling.queries, chunk // (G * tiling.query)))  # of queries in a chunk
    while tiling.queries % tiles:
        tiles -= 1
    chunks = tiling.queries // tiles

    def query_tile(b, c, j, i, first, last):
        at = b * tiling.keys + j
        return jnp.clip(c * tiles + i, first[at], jnp.maximum(last[at], first[at]))

    def of_query(b, kv, c, j, g, i, first, last, whole):
        return b, kv * G + g, query_tile(b, c, j, i, first, last), 0

    def row_of_query(b, kv, c, j, g, i, first, last, whole):
        return b, kv * G + g, 0, query_tile(b, c, j, i, first, last)

    def start_of_query(b, kv, c, j, g, i, first, last, whole):
        return b, 0, query_tile(b, c, j, i, first, last)

    query = pl.BlockSpec((None, None, tiling.query, H), of_query)
    row = pl.BlockSpec((None, None, 1, tiling.query), row_of_query)
    start = pl.BlockSpec((None, 1, tiling.query), start_of_query)
    key = pl.BlockSpec((None, None, tiling.key, H), lambda b, kv, c, j, *_: (b, kv, j, 0))
    piece = pl.BlockSpec((None, None, None, tiling.key, H),
                         lambda b, kv, c, j, *_: (c, b, kv, j, 0))
    piece_dtype = k_BKPH.dtype if chunks == 1 else jnp.float32
    dq_BNiHQ, dk, dv = pl.pallas_call(
        functools.partial(_kernel, tiling=tiling, tiles=tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, K, chunks, tiling.keys, G, tiles),
            in_specs=[start, query, key, key, query, row, row],
            out_specs=[pl.BlockSpec((None, G, tiles, H, tiling.query),
                                    lambda b, kv, c, *_: (b, kv, c, 0, 0)), piece, piece],
            scratch_shapes=[pltpu.VMEM((G, tiles, H, tiling.query), jnp.float32),
                            pltpu.VMEM((tiling.key, H), jnp.float32),
                            pltpu.VMEM((tiling.key, H), jnp.float32)]),
        out_shape=[
            jax.ShapeDtypeStruct((B, N, tiling.queries, H, tiling.query), q_BNPH.dtype),
            *[jax.ShapeDtypeStruct((chunks, B, K, P, H), piece_dtype)] * 2],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel") + ("arbitrary",) * 4),
        interpret=interpret or False,
        name="attention_backward",
    )(bounds.first_query, bounds.last_query, bounds.whole_key, k_start_BP[:, None], q_BNPH, k_BKPH,
      v_BKPH, dout_BNPH, lse_BN1P, delta_BN1P)
    dq = dq_BNiHQ.transpose(0, 1, 2, 4, 3).reshape(B, N, P, H)
    return dq, jnp.sum(dk, axis=0, dtype=jnp.float32), jnp.sum(dv, axis=0, dtype=jnp.float32)


def _kernel(first, last, whole, k_start, q, k, v, dout, lse, delta, dq_out, dk_out, dv_out, dq, dk,
            dv, *, tiling: Tiling, tiles: int):
    """One tile of keys against one tile of one head's queries."""
    b, c, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    g, i = pl.program_id(4), pl.program_id(5)
    query_tile = c * tiles + i
    at = b * tiling.keys + j
    whole_here = is_whole(query_tile, j, whole[b * tiling.queries + query_tile], tiling)
    visited = (query_tile >= first[at]) & (query_tile <= last[at])
    first_visit, last_visit = (g == 0) & (i == 0), (g == pl.num_programs(4) - 1) & (i == tiles - 1)

    @pl.when(first_visit)
    def _():
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    @pl.when(j == 0)
    def _():
        dq[g, i] = jnp.zeros(dq.shape[2:], dq.dtype)

    @pl.when(visited & whole_here)
    def _():
        _tile(q, k, v, dout, lse, delta, dq.at[g, i], dk, dv, tiling, None)

    @pl.when(visited & ~whole_here)
    def _():
        query = jax.lax.broadcasted_iota(jnp.int32, (1, tiling.query), 1)
        query = query + (query_tile * tiling.query - j * tiling.key)
        _tile(q, k, v, dout, lse, delta, dq.at[g, i], dk, dv, tiling,
              (k_start[...] - j * tiling.key, query))

    @pl.when(j == tiling.keys - 1)
    def _():
        dq_out[g, i] = dq[g, i].astype(dq_out.dtype)

    @pl.when(last_visit)
    def _():
        dk_out[...] = dk[...].astype(dk_out.dtype)
        dv_out[...] = dv[...].astype(dv_out.dtype)


def _tile(q, k, v, dout, lse, delta, dq, dk, dv, tiling: Tiling, interval) -> None:
    """Adds to dq, dk and dv what a tile gives, `compute` keys at a time.

    Args:
      interval: int32 [1, query] each, the first and the last key that a query sees, counted from
        the tile's first; None: all are seen.
    """
    def dot(a, b, axis_a, axis_b):
        return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())),
                                   precision=precision(q.dtype),
                                   preferred_element_type=jnp.float32)

    for begin in range(0, tiling.key, tiling.compute):
        part = pl.ds(begin, tiling.compute)
        scores = dot(k[part, :], q[...], 1, 1)
        if interval is not None:
            key = begin + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            scores = jnp.where((key >= interval[0]) & (key <= interval[1]), scores, HIDDEN)
        weights = jnp.exp2(scores - lse[...])
        dv[part, :] += dot(weights.astype(dout.dtype), dout[...], 1, 0)
        dweights = dot(v[part, :], dout[...], 1, 1)
        dscores = (weights * (dweights - delta[...])).astype(q.dtype)
        dk[part, :] += dot(dscores, q[...], 1, 0)
        dq[...] += dot(k[part, :], dscores, 0, 0)
