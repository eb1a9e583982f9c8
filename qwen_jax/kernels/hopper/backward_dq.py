"""Deterministic dQ on Hopper: one of the two kernels of the deterministic backward pass.

The fused kernel (backward.py) sums dQ in the order in which thread blocks finish. Here, a thread
block owns 128 queries of one head and sums in key order:

  S = Q K^T,  dP = dO V^T,  dS = 2^(S scale log2(e) - lse) (dP - delta),  dQ += dS K

with dQ and dS in registers. Two consumer warpgroups of 64 queries each work independently, and a
producer warpgroup loads the tiles. S and dP are computed twice, so there are seven matmuls in total
instead of five.

B batch, T positions, N heads, K key-value heads, G = N / K, H head size.
"""

import dataclasses
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from qwen_jax.kernels.hopper import ops
from qwen_jax.types import Array

QUERIES = 128  # queries per thread block
_KEYS = 128  # keys per step
_STAGES = 2  # key tiles in shared memory


def query_gradient(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    dout_BTNH: Array,
    lse_BNT: Array,
    delta_BNT: Array,
    k_start_BT: Array,
    *,
    scale: float,
) -> Array:
    """Returns dQ in q's dtype. T must be a multiple of 128; arguments are as in backward.py.

    Args:
      k_start_BT: int32; see mask.first_key; T or more for a query that sees no key.
    """
    index = jnp.tile(jnp.arange(_KEYS, dtype=jnp.int32), 2)
    return _kernel(q_BTNH, k_BTKH.shape[2], scale)(
        q_BTNH, k_BTKH, v_BTKH, dout_BTNH, lse_BNT, delta_BNT, k_start_BT, index, bounds(k_start_BT)
    )


def bounds(k_start_BT: Array) -> Array:
    """Returns the key tiles of each query tile, int32 [B, T / QUERIES, 4].

    These are (first, end, unmasked_start_0, unmasked_start_1). No query sees a key outside of tiles
    first to end - 1. Tiles from unmasked_start_0 (1) on that end before the queries of warpgroup 0
    (1) need no mask.
    """
    B, T = k_start_BT.shape
    k_start = k_start_BT.reshape(B, T // QUERIES, QUERIES)
    query = jnp.arange(T, dtype=jnp.int32).reshape(1, T // QUERIES, QUERIES)
    first = jnp.min(k_start, axis=-1) // _KEYS
    end = jnp.max(jnp.where(k_start <= query, query, -1), axis=-1) // _KEYS + 1
    unmasked_start = -(
        -jnp.max(k_start.reshape(B, T // QUERIES, 2, QUERIES // 2), axis=-1) // _KEYS
    )
    pair = jnp.stack([jnp.minimum(first, end), end], axis=-1)
    return jnp.concatenate([pair, unmasked_start], axis=-1)


@dataclasses.dataclass(frozen=True)
class _Memory:
    """Shared memory and barriers of a thread block."""

    q: Any  # [QUERIES, H], later dQ
    dout: Any
    k: Any  # [_STAGES, _KEYS, H]
    v: Any
    lse: Any  # [QUERIES]
    delta: Any
    k_start: Any
    index: Any  # 0 .. 127 twice, once for each use; see backward.py
    q_full: Any  # barrier: q, dout, lse, delta, k_start and index are loaded
    k_full: Any  # barrier per stage: k is loaded
    v_full: Any  # barrier per stage: v is loaded
    free: Any  # barrier per stage: both consumers have finished with it


def _kernel(q: Array, K: int, scale: float):
    """Returns the kernel (q, k, v, dout, lse, delta, k_start, index, bounds) -> dq."""
    B, T, N, H = q.shape
    own, stages = ops.tiled((QUERIES, H), q.dtype), ops.tiled((_STAGES, _KEYS, H), q.dtype)
    row = plgpu.SMEM((QUERIES,), jnp.float32)
    full = plgpu.Barrier(num_arrivals=1, num_barriers=_STAGES)
    free = plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES)
    scratch = [
        own,
        own,
        stages,
        stages,
        row,
        row,
        plgpu.SMEM((QUERIES,), jnp.int32),
        plgpu.SMEM((2 * _KEYS,), jnp.int32),
        plgpu.Barrier(num_arrivals=6),
        full,
        full,
        free,
    ]

    def body(q, k, v, dout, lse, delta, k_start, index, bounds, dq, *scratch):
        memory = _Memory(*scratch)
        b, n = lax.axis_index("batch"), lax.axis_index("head")
        # The last queries see the most keys, so their blocks start first.
        t = T // QUERIES - 1 - lax.axis_index("queries")
        warpgroup = lax.axis_index("wg")
        first, end = bounds[b, t, 0], bounds[b, t, 1]

        @pl.when(warpgroup == 2)
        def _():
            plgpu.set_max_registers(24, action="decrease")
            rows = pl.ds(t * QUERIES, QUERIES)
            for source, target in (
                (q.at[b, rows, n], memory.q),
                (dout.at[b, rows, n], memory.dout),
                (lse.at[b, n, rows], memory.lse),
                (delta.at[b, n, rows], memory.delta),
                (k_start.at[b, rows], memory.k_start),
                (index, memory.index),
            ):
                plgpu.copy_gmem_to_smem(source, target, memory.q_full)
            head = lax.div(n, jnp.int32(N // K))
            _produce(memory, k.at[b, :, head], v.at[b, :, head], first, end)

        @pl.when(warpgroup < 2)
        def _():
            plgpu.set_max_registers(240, action="increase")
            rows = pl.ds(t * QUERIES + warpgroup * 64, 64)
            _consume(
                memory,
                dq.at[b, rows, n],
                first,
                end,
                bounds[b, t, 2 + warpgroup],
                query=t * QUERIES + warpgroup * 64,
                warpgroup=warpgroup,
                scale=scale,
            )

    return ops.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types=scratch,
        grid={"batch": B, "head": N, "queries": T // QUERIES},
        warpgroups=3,
        name="attention_backward_dq",
        automatic_barriers=False,
    )


def _produce(memory: _Memory, k, v, first, end):
    """Loads the tiles of keys and values one after another as stages become free."""

    def step(s, _):
        stage, keys = lax.rem(s, jnp.int32(_STAGES)), pl.ds((first + s) * _KEYS, _KEYS)

        @pl.when(s >= _STAGES)
        def _():
            plgpu.barrier_wait(memory.free.at[stage])

        plgpu.copy_gmem_to_smem(k.at[keys], memory.k.at[stage], memory.k_full.at[stage])
        plgpu.copy_gmem_to_smem(v.at[keys], memory.v.at[stage], memory.v_full.at[stage])

    lax.fori_loop(0, end - first, step, None)

    def drain(s, _):
        plgpu.barrier_wait(memory.free.at[lax.rem(s, jnp.int32(_STAGES))])

    lax.fori_loop(jnp.maximum(end - first - _STAGES, 0), end - first, drain, None)


def _consume(memory: _Memory, dq, first, end, unmasked_start, *, query, warpgroup, scale: float):
    """Computes one warpgroup's dq, [64, H] in global memory, over all key tiles."""
    H, dtype = memory.q.shape[1], memory.q.dtype
    mine, steps = pl.ds(warpgroup * 64, 64), end - first
    plgpu.barrier_wait(memory.q_full)
    lse = plgpu.load(memory.lse.at[mine], layout=ops.ROWS)
    delta = plgpu.load(memory.delta.at[mine], layout=ops.ROWS)

    def run(dq_sum):
        def step(s, me):
            stage, shape = lax.rem(s, jnp.int32(_STAGES)), (64, _KEYS)
            key = (first + s) * _KEYS

            def scores(s_sum, dp_sum):
                own = pl.ds(me * 64, 64)
                plgpu.barrier_wait(memory.k_full.at[stage])
                ops.accumulate(s_sum, memory.q.at[own], memory.k.at[stage].transpose((1, 0)))
                ops.wait(1)  # until the dQ matmul of the previous step has completed

                @pl.when(s > 0)
                def _():
                    plgpu.barrier_arrive(memory.free.at[lax.rem(s - 1, jnp.int32(_STAGES))])

                plgpu.barrier_wait(memory.v_full.at[stage])
                ops.accumulate(dp_sum, memory.dout.at[own], memory.v.at[stage].transpose((1, 0)))
                p = jnp.exp2(
                    ops.read(s_sum, in_flight=1) * (scale * ops.LOG2E)
                    - lax.broadcast_in_dim(lse, shape, (0,))
                )
                p = _masked(
                    p,
                    memory,
                    query=query,
                    key=key,
                    mine=own,
                    needed=(key + _KEYS - 1 > query) | (first + s < unmasked_start),
                )
                dp = ops.read(dp_sum)
                return (p * (dp - lax.broadcast_in_dim(delta, shape, (0,)))).astype(dtype)

            ops.accumulate(dq_sum, ops.accumulators(scores, shape, shape), memory.k.at[stage])
            # This is always `me`, but keeps addresses out of registers; see backward.py.
            return jnp.where(first < 0, s, me)

        ops.loop(0, steps, step, warpgroup, accumulators=(dq_sum,))
        total = ops.read(dq_sum) * scale

        @pl.when(steps > 0)
        def _():
            plgpu.barrier_arrive(memory.free.at[lax.rem(steps - 1, jnp.int32(_STAGES))])

        return total

    memory.q.at[mine][...] = ops.accumulators(run, (64, H)).astype(dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(memory.q.at[mine], dq)
    plgpu.wait_smem_to_gmem(0)


def _masked(p, memory: _Memory, *, query, key, mine, needed):
    """Returns p [64 queries, _KEYS keys], zero where the query does not see the key."""

    def mask(p):
        columns = plgpu.load(memory.index.at[pl.ds(0, _KEYS)], layout=ops.COLUMNS)
        rows = plgpu.load(memory.index.at[pl.ds(_KEYS, 64)], layout=ops.ROWS) + (query - key)
        start = plgpu.load(memory.k_start.at[mine], layout=ops.ROWS) - key
        at = lax.broadcast_in_dim(columns, p.shape, (1,))
        seen = (at <= lax.broadcast_in_dim(rows, p.shape, (0,))) & (
            at >= lax.broadcast_in_dim(start, p.shape, (0,))
        )
        return jnp.where(seen, p, 0.0)

    return lax.cond(needed, mask, lambda p: p, p)
