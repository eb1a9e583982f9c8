"""Fused backward attention for TPUs: one pass over the tiles computes dq, dk and dv.

Scores are computed as [key, query], so the log-sum-exp, delta and mask of the queries lie along the
lanes, as they are stored. The dq of a chunk of queries stays in VMEM, transposed, across all key
tiles. The dk and dv of a key tile are summed in VMEM over the queries and the heads of a group. A
sequence longer than a chunk is processed chunk by chunk, and dk and dv are summed over the chunks.

B batch, N heads, K key-value heads, G = N / K, P padded positions, H head size.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qwen_jax.kernels.tpu.visited_tiles import HIDDEN, Bounds, Tiling, is_unmasked, precision
from qwen_jax.types import Array

_LN_2 = math.log(2)


def backward(
    q_BNPH: Array,
    k_BKPH: Array,
    v_BKPH: Array,
    dout_BNPH: Array,
    lse_BN1P: Array,
    delta_BN1P: Array,
    k_start_BP: Array,
    k_end_BP: Array | None,
    bounds: Bounds,
    *,
    scale: float,
    tiling: Tiling,
    chunk: int,
    dtype,
    interpret,
) -> tuple[Array, Array, Array]:
    """Returns dq [B, N, P, H] in `dtype`; dk and dv [B, K, P, H] in `dtype`, or float32 if chunked.

    Args:
      q_BNPH: queries, pre-scaled by scale * log2(e) as in the forward pass.
      lse_BN1P: base-2 log-sum-exp.
      delta_BN1P: sum over H of dout * out, float32.
      k_end_BP: the last key that each query sees; None: its own position.
      chunk: number of queries (over all heads of a group) whose dq may stay in VMEM.
    """
    B, N, P, H = q_BNPH.shape
    G = N // k_BKPH.shape[1]
    tiles = max(1, min(tiling.queries, chunk // (G * tiling.query)))  # query tiles in a chunk
    while tiling.queries % tiles:
        tiles -= 1
    chunks = tiling.queries // tiles
    arrays = (q_BNPH, k_BKPH, v_BKPH, dout_BNPH, lse_BN1P, delta_BN1P)
    rows = [x[:, None] for x in (k_start_BP, k_end_BP) if x is not None]
    run = functools.partial(
        _chunk,
        rows=rows,
        arrays=arrays,
        bounds=bounds,
        scale=scale,
        tiling=tiling,
        tiles=tiles,
        interpret=interpret,
        dtypes=(dtype, dtype if chunks == 1 else jnp.dtype(jnp.float32)),
    )
    if chunks == 1:
        dq, dk, dv = run(jnp.int32(0))
        dq = dq[None]
    else:

        def add(sums, c):
            dq, *parts = run(c)
            return [total + part for total, part in zip(sums, parts, strict=True)], dq

        zero = jnp.zeros(k_BKPH.shape, jnp.float32)
        (dk, dv), dq = jax.lax.scan(add, [zero, zero], jnp.arange(chunks, dtype=jnp.int32))
    # [chunk, B, N, tile, H, query] -> [B, N, chunk, tile, query, H]
    return dq.transpose(1, 2, 0, 3, 5, 4).reshape(B, N, P, H), dk, dv


def _chunk(
    c: Array,
    *,
    rows,
    arrays,
    bounds: Bounds,
    scale: float,
    tiling: Tiling,
    tiles: int,
    dtypes,
    interpret,
):
    """Returns the dq of chunk c, [B, N, tiles, H, query], and its contributions to dk and dv.

    Args:
      rows: k_start and, unless it is the query's position, k_end.
      dtypes: the dtype of dq, and the dtype of dk and dv.
    """
    q_BNPH, k_BKPH = arrays[:2]
    B, N, _, H = q_BNPH.shape
    K = k_BKPH.shape[1]
    G = N // K

    def query_tile(b, j, i, c, first, last):
        at = b * tiling.keys + j
        # A skipped tile maps to one that is already loaded, which avoids a fetch.
        return jnp.clip(c[0] * tiles + i, first[at], jnp.maximum(last[at], first[at]))

    def of_query(b, kv, j, g, i, c, first, last, *unmasked):
        return b, kv * G + g, query_tile(b, j, i, c, first, last), 0

    def row_of_query(b, kv, j, g, i, c, first, last, *unmasked):
        return b, kv * G + g, 0, query_tile(b, j, i, c, first, last)

    def start_of_query(b, kv, j, g, i, c, first, last, *unmasked):
        return b, 0, query_tile(b, j, i, c, first, last)

    query = pl.BlockSpec((None, None, tiling.query, H), of_query)
    row = pl.BlockSpec((None, None, 1, tiling.query), row_of_query)
    start = pl.BlockSpec((None, 1, tiling.query), start_of_query)
    key = pl.BlockSpec((None, None, tiling.key, H), lambda b, kv, j, *_: (b, kv, j, 0))
    return pl.pallas_call(
        functools.partial(_kernel, scale=scale, tiling=tiling, tiles=tiles, causal=len(rows) == 1),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(B, K, tiling.keys, G, tiles),
            in_specs=[start] * len(rows) + [query, key, key, query, row, row],
            out_specs=[
                pl.BlockSpec((None, G, tiles, H, tiling.query), lambda b, kv, *_: (b, kv, 0, 0, 0)),
                key,
                key,
            ],
            scratch_shapes=[
                pltpu.VMEM((G, tiles, H, tiling.query), jnp.float32),
                pltpu.VMEM((tiling.key, H), jnp.float32),
                pltpu.VMEM((tiling.key, H), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, N, tiles, H, tiling.query), dtypes[0]),
            *[jax.ShapeDtypeStruct(k_BKPH.shape, dtypes[1])] * 2,
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel") + ("arbitrary",) * 3
        ),
        interpret=interpret or False,
        name="attention_backward",
    )(
        c[None],
        bounds.first_query,
        bounds.last_query,
        bounds.first_unmasked,
        bounds.last_unmasked,
        *rows,
        *arrays,
    )


def _kernel(
    c,
    first,
    last,
    first_unmasked,
    last_unmasked,
    k_start,
    *refs,
    scale: float,
    tiling: Tiling,
    tiles: int,
    causal: bool,
):
    """Processes one tile of keys and one tile of one head's queries."""
    k_end, q, k, v, dout, lse, delta, dq_out, dk_out, dv_out, dq, dk, dv = (
        (None, *refs) if causal else refs
    )
    b, j = pl.program_id(0), pl.program_id(2)
    g, i = pl.program_id(3), pl.program_id(4)
    query_tile = c[0] * tiles + i
    at = b * tiling.keys + j
    unmasked_here = is_unmasked(j, b * tiling.queries + query_tile, first_unmasked, last_unmasked)
    visited = (query_tile >= first[at]) & (query_tile <= last[at])
    first_visit, last_visit = (g == 0) & (i == 0), (g == pl.num_programs(3) - 1) & (i == tiles - 1)

    @pl.when(first_visit)
    def _():
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    @pl.when(j == 0)
    def _():
        dq[g, i] = jnp.zeros(dq.shape[2:], dq.dtype)

    @pl.when(visited & unmasked_here)
    def _():
        _tile(q, k, v, dout, lse, delta, dq.at[g, i], dk, dv, tiling, None)

    @pl.when(visited & ~unmasked_here)
    def _():
        if k_end is None:
            end = jax.lax.broadcasted_iota(jnp.int32, (1, tiling.query), 1)
            end = end + (query_tile * tiling.query - j * tiling.key)
        else:
            end = k_end[...] - j * tiling.key
        _tile(
            q,
            k,
            v,
            dout,
            lse,
            delta,
            dq.at[g, i],
            dk,
            dv,
            tiling,
            (k_start[...] - j * tiling.key, end),
        )

    @pl.when(j == tiling.keys - 1)
    def _():
        dq_out[g, i] = (dq[g, i] * scale).astype(dq_out.dtype)

    @pl.when(last_visit)
    def _():
        dk_out[...] = (dk[...] * _LN_2).astype(dk_out.dtype)  # q is pre-scaled by log2(e)
        dv_out[...] = dv[...].astype(dv_out.dtype)


def _tile(q, k, v, dout, lse, delta, dq, dk, dv, tiling: Tiling, interval) -> None:
    """Adds the contributions of a tile to dq, dk and dv; computes its scores in parts.

    Args:
      interval: the first and last key that each query sees, relative to the tile's first key, int32
        [1, query] each; None: every query sees all keys.
    """

    def dot(a, b, axis_a, axis_b):
        return jax.lax.dot_general(
            a,
            b,
            (((axis_a,), (axis_b,)), ((), ())),
            precision=precision(q.dtype),
            preferred_element_type=jnp.float32,
        )

    dscores = []
    for begin, size in tiling.parts(masked=interval is not None):
        part = pl.ds(begin, size)
        scores = dot(k[part, :], q[...], 1, 1)
        if interval is not None:
            key = begin + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            scores = jnp.where((key >= interval[0]) & (key <= interval[1]), scores, HIDDEN)
        weights = jnp.exp2(scores - lse[...])
        dv[part, :] += dot(weights.astype(dout.dtype), dout[...], 1, 0)
        dweights = dot(v[part, :], dout[...], 1, 1)
        dscores.append((weights * (dweights - delta[...])).astype(q.dtype))
    # One matmul each over the full tile keeps the MXU busier at the end of a tile.
    dscores = jnp.concatenate(dscores, axis=0)
    dk[...] += dot(dscores, q[...], 1, 0)
    dq[...] += dot(k[...], dscores, 0, 0)
