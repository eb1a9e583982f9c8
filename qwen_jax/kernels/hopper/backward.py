"""The backward pass of attention on Hopper: one fused kernel of wgmma, TMA and three warpgroups.

A thread block owns 128 keys of one key-value head. A producer warpgroup loads the query tiles that
see them, for every query head of the group. Two consumer warpgroups of 64 keys each compute

  S^T = K Q^T,  dP^T = V dO^T,  P^T = 2^(S^T scale log2(e) - lse),  dS^T = P^T (dP^T - delta)
  dV += P^T dO,  dK += dS^T Q,  dQ += dS K

with dV and dK in registers. The scores are transposed, so P^T and dS^T can be register operands of
the matmuls. Only dS^T goes through shared memory, since each warpgroup's part of dQ needs the keys
of both. TMA sums dQ in float32 in global memory in no fixed order, so its last bits differ between
runs. With `deterministic`, a second kernel computes dQ instead (backward_dq.py), which takes two
matmuls in addition to five.

The order within a step keeps the tensor cores busy: S, dP, dV, dQ and dK start one after another.
The exponentials overlap with dP, dS with dV, and the store of dQ with dK. dK overlaps with the next
step.

B batch, T positions, N heads, K key-value heads, G = N / K, H head size, Q queries in a tile.
"""

import dataclasses
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from qwen_jax.kernels import tiles
from qwen_jax.kernels.hopper import ops
from qwen_jax.kernels.hopper.backward_dq import query_gradient
from qwen_jax.kernels.platform import target_of
from qwen_jax.types import Array

KEYS = 128  # keys per tile: two warpgroups of 64, the height of a wgmma
_STAGES = 2  # query tiles in shared memory


def backward(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    k_start_BT: Array,
    q_end_BT: Array,
    out_BTNH: Array,
    lse: Array,
    dout_BTNH: Array,
    *,
    scale: float,
    deterministic: bool = False,
) -> tuple[Array, Array, Array]:
    """Returns dq, dk and dv, each in its input's dtype (bfloat16 or float16; H is 64 or 128).

    Args:
      k_start_BT, q_end_BT: int32; see mask.first_key and mask.last_query. They hold the same
        information; each kernel reads the one it needs.
      lse: float32 [B, N, T'], T' >= T; see ops.py.
      deterministic: whether results must be bitwise equal in every run.
    """
    B, T, N, H = q_BTNH.shape
    tile, padded = _tile(H), -(-T // KEYS) * KEYS
    f32 = jnp.float32
    delta = jnp.einsum("BTNH,BTNH->BNT", out_BTNH.astype(f32), dout_BTNH.astype(f32))
    q, k, v, dout = (_pad(x, padded, axis=1) for x in (q_BTNH, k_BTKH, v_BTKH, dout_BTNH))
    delta = _pad(delta, padded, axis=2)
    lse = _pad(lse[:, :, :T], padded, axis=2, value=ops.NOTHING_VISIBLE)
    q_end = _pad(q_end_BT, padded, axis=1, value=-1)
    shape = Shape(
        B=B,
        T=padded,
        N=N,
        K=k.shape[2],
        H=H,
        Q=tile,
        dq=not deterministic,
        early_dv=_early_dv(q_BTNH),
        dtype=q.dtype,
        scale=scale,
    )
    index = jnp.concatenate([jnp.arange(n, dtype=jnp.int32) for n in (tile, 64)])
    arguments = (q, k, v, dout, lse, delta, q_end, index, bounds(q_end, tile))
    if deterministic:
        k_start = _pad(k_start_BT, padded, axis=1, value=padded)
        dq = query_gradient(q, k, v, dout, lse, delta, k_start, scale=scale)
        dk, dv = _kernel(shape)(*arguments)
    else:
        dq_ref = jax.new_ref(jnp.zeros((B, padded, N, H), f32))
        dk, dv = _kernel(shape)(*arguments, dq_ref)
        dq = jax.freeze(dq_ref).astype(q.dtype)
    return dq[:, :T], dk[:, :T], dv[:, :T]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Static parameters of the kernel. T is a multiple of KEYS and of Q."""

    B: int
    T: int
    N: int
    K: int
    H: int
    Q: int
    dq: bool  # whether to compute dQ too
    early_dv: bool  # whether to start dV before dS is computed: more overlap, more registers
    dtype: jnp.dtype
    scale: float


def _tile(H: int) -> int:
    """Returns the queries per tile, such that S, dP (64 x Q), dK and dV (64 x H) fit in 240
    registers."""
    return 64 if H == 128 else 128


def _early_dv(q: Array) -> bool:
    """Returns the setting in tiles.json or the default, which is False for H = 64: too few
    registers remain."""
    H = q.shape[3]
    found = tiles.lookup(
        "hopper_backward",
        kind=target_of(q).kind,
        head_size=H,
        dtype=q.dtype.name,
        default={"early_dv": int(H == 128)},
    )
    return bool(found["early_dv"])


def _pad(x: Array, length: int, *, axis: int, value: float = 0) -> Array:
    if x.shape[axis] == length:
        return x
    width = [(0, 0)] * x.ndim
    width[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, width, constant_values=value)


def bounds(q_end_BT: Array, tile: int) -> Array:
    """Returns the query tiles of each key tile, int32 [B, T / KEYS, 4].

    These are (first, end, unmasked_end_0, unmasked_end_1). No query outside of tiles first to
    end - 1 sees any of the keys. The query tiles after the keys of warpgroup 0 (1) and before
    unmasked_end_0 (1) need no mask.
    """
    B, T = q_end_BT.shape
    q_end = q_end_BT.reshape(B, T // KEYS, KEYS)
    key = jnp.arange(T, dtype=jnp.int32).reshape(1, T // KEYS, KEYS)
    end = jnp.max(q_end, axis=-1) // tile + 1
    first = jnp.min(jnp.where(q_end >= key, key, T), axis=-1) // tile
    unmasked_end = (jnp.min(q_end.reshape(B, T // KEYS, 2, KEYS // 2), axis=-1) + 1) // tile
    pair = jnp.stack([jnp.minimum(first, end), end], axis=-1)
    return jnp.concatenate([pair, unmasked_end], axis=-1)


@dataclasses.dataclass(frozen=True)
class _Memory:
    """Shared memory and barriers of a thread block (in the order of `_scratch`)."""

    k: Any  # [KEYS, H], later dK
    v: Any  # [KEYS, H], later dV
    q: Any  # [_STAGES, Q, H]
    dout: Any
    lse: Any  # [_STAGES, Q]
    delta: Any
    q_end: Any  # [KEYS]
    index: Any  # [Q + 64]: 0 .. Q-1, 0 .. 63; mask indices, stored here to save registers
    ds: Any  # [2, KEYS, Q]: dS^T of this step and the previous one
    dq: Any  # [2, 64, 64]: each warpgroup's part of dQ, before it is stored
    kv_full: Any  # barrier: k, v, q_end and index are loaded
    q_full: Any  # barrier per stage: q and lse are loaded
    dout_full: Any  # barrier per stage: dout and delta are loaded
    free: Any  # barrier per stage: both consumers have finished with it
    ds_full: Any  # barrier: both consumers have written their part of dS^T


def _scratch(shape: Shape) -> list:
    Q, H, dtype = shape.Q, shape.H, shape.dtype
    tile, row = ops.tiled((_STAGES, Q, H), dtype), plgpu.SMEM((_STAGES, Q), jnp.float32)
    pair = plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES)
    return [
        ops.tiled((KEYS, H), dtype),
        ops.tiled((KEYS, H), dtype),
        tile,
        tile,
        row,
        row,
        plgpu.SMEM((KEYS,), jnp.int32),
        plgpu.SMEM((Q + 64,), jnp.int32),
        ops.tiled((2, KEYS, Q), dtype),
        ops.tiled((2, 64, 64), jnp.float32),
        plgpu.Barrier(num_arrivals=4),
        pair,
        pair,
        pair,
        plgpu.Barrier(num_arrivals=2),
    ]


def _kernel(shape: Shape):
    """Returns the kernel (q, k, v, dout, lse, delta, q_end, index, bounds[, dq]) -> (dk, dv).

    With shape.dq, dQ is added to the reference dq, float32 [B, T, N, H].
    """

    def body(q, k, v, dout, lse, delta, q_end, index, bounds, *rest):
        dq, dk, dv, *scratch = rest if shape.dq else (None, *rest)
        memory = _Memory(*scratch)
        b, head, j = (lax.axis_index(name) for name in ("batch", "head", "keys"))
        warpgroup = lax.axis_index("wg")

        @pl.when(warpgroup == 2)
        def _():
            plgpu.set_max_registers(24, action="decrease")
            plgpu.copy_gmem_to_smem(index, memory.index, memory.kv_full)
            _produce(shape, memory, q, k, v, dout, lse, delta, q_end, bounds, b, head, j)

        @pl.when(warpgroup < 2)
        def _():
            plgpu.set_max_registers(240, action="increase")
            _consume(shape, memory, bounds, dq, dk, dv, b, head, j, warpgroup)

    out = jax.ShapeDtypeStruct((shape.B, shape.T, shape.K, shape.H), shape.dtype)
    # Key tiles vary fastest, so concurrent blocks read the same queries from L2. The blocks of the
    # first keys, which the most queries see, start first.
    grid = {"batch": shape.B, "head": shape.K, "keys": shape.T // KEYS}
    return ops.kernel(
        body,
        out_type=[out, out],
        scratch_types=_scratch(shape),
        grid=grid,
        warpgroups=3,
        name="attention_backward",
        automatic_barriers=False,
    )


def _produce(shape: Shape, memory: _Memory, q, k, v, dout, lse, delta, q_end, bounds, b, head, j):
    """Loads the keys, then the query tiles one after another as stages become free."""
    G = shape.N // shape.K
    keys = pl.ds(j * KEYS, KEYS)
    plgpu.copy_gmem_to_smem(k.at[b, keys, head], memory.k, memory.kv_full)
    plgpu.copy_gmem_to_smem(v.at[b, keys, head], memory.v, memory.kv_full)
    plgpu.copy_gmem_to_smem(q_end.at[b, keys], memory.q_end, memory.kv_full)
    first, end = bounds[b, j, 0], bounds[b, j, 1]
    steps = (end - first) * G

    def step(s, state):
        i, g = state
        stage = _stage(s)
        queries, n = pl.ds(i * shape.Q, shape.Q), head * G + g

        @pl.when(s >= _STAGES)
        def _():
            plgpu.barrier_wait(memory.free.at[stage])

        plgpu.copy_gmem_to_smem(q.at[b, queries, n], memory.q.at[stage], memory.q_full.at[stage])
        plgpu.copy_gmem_to_smem(
            lse.at[b, n, queries], memory.lse.at[stage], memory.q_full.at[stage]
        )
        plgpu.copy_gmem_to_smem(
            dout.at[b, queries, n], memory.dout.at[stage], memory.dout_full.at[stage]
        )
        plgpu.copy_gmem_to_smem(
            delta.at[b, n, queries], memory.delta.at[stage], memory.dout_full.at[stage]
        )
        return _next(i, g, first, end)

    lax.fori_loop(0, steps, step, (first, jnp.int32(0)))

    def drain(s, _):
        plgpu.barrier_wait(memory.free.at[_stage(s)])

    lax.fori_loop(jnp.maximum(steps - _STAGES, 0), steps, drain, None)


def _stage(s):
    return lax.rem(s, jnp.int32(_STAGES))


def _next(i, g, first, end):
    """Returns the (i, g) that follows query tile i of the group's head g."""
    wraps = i + 1 == end
    return jnp.where(wraps, first, i + 1), jnp.where(wraps, g + 1, g)


def _consume(shape: Shape, memory: _Memory, bounds, dq, dk, dv, b, head, j, warpgroup):
    """Computes the gradients of one warpgroup's 64 keys over all query tiles."""
    H, G = shape.H, shape.N // shape.K
    first, end, unmasked_end = bounds[b, j, 0], bounds[b, j, 1], bounds[b, j, 2 + warpgroup]
    mine, steps = pl.ds(warpgroup * 64, 64), (end - first) * G
    plgpu.barrier_wait(memory.kv_full)

    def run(dk_sum, dv_sum):
        def step(s, state):
            i, g, me = state
            _step(
                shape,
                memory,
                dk_sum,
                dv_sum,
                dq,
                b=b,
                n=head * G + g,
                i=i,
                s=s,
                key=j * KEYS + me * 64,
                unmasked_end=unmasked_end,
                warpgroup=me,
            )
            # The last value is always `me`, but the compiler cannot tell. Otherwise it would
            # compute the addresses that depend on `me` before the loop, and spill about 80
            # registers.
            return *_next(i, g, first, end), jnp.where(i < 0, i, me)

        ops.loop(0, steps, step, (first, jnp.int32(0), warpgroup), accumulators=(dk_sum, dv_sum))
        ops.wait(0)

        @pl.when(steps > 0)
        def _():
            plgpu.barrier_arrive(memory.free.at[_stage(steps - 1)])

        memory.v.at[mine][...] = ops.read(dv_sum).astype(shape.dtype)
        # The other warpgroup reads all keys for its part of dQ.
        plgpu.barrier_arrive(memory.ds_full)
        plgpu.barrier_wait(memory.ds_full)
        memory.k.at[mine][...] = (ops.read(dk_sum) * shape.scale).astype(shape.dtype)

    ops.accumulators(run, (64, H), (64, H))
    plgpu.commit_smem()
    keys = pl.ds(j * KEYS + warpgroup * 64, 64)
    plgpu.copy_smem_to_gmem(memory.k.at[mine], dk.at[b, keys, head])
    plgpu.copy_smem_to_gmem(memory.v.at[mine], dv.at[b, keys, head])
    plgpu.wait_smem_to_gmem(0)


def _step(
    shape: Shape, memory: _Memory, dk_sum, dv_sum, dq, *, b, n, i, s, key, unmasked_end, warpgroup
):
    """Adds the contributions of one query tile to dK, dV and dQ of 64 keys."""
    Q, mine = shape.Q, pl.ds(warpgroup * 64, 64)
    stage = _stage(s)
    q, dout = memory.q.at[stage], memory.dout.at[stage]

    def scores(s_sum, dp_sum):
        plgpu.barrier_wait(memory.q_full.at[stage])
        ops.accumulate(s_sum, memory.k.at[mine], q.transpose((1, 0)))
        ops.wait(1)  # until the dK matmul of the previous step has completed

        @pl.when(s > 0)
        def _():
            plgpu.barrier_arrive(memory.free.at[_stage(s - 1)])

        plgpu.barrier_wait(memory.dout_full.at[stage])
        ops.accumulate(dp_sum, memory.v.at[mine], dout.transpose((1, 0)))
        lse = plgpu.load(memory.lse.at[stage], layout=ops.COLUMNS)
        p = jnp.exp2(
            ops.read(s_sum, in_flight=1) * (shape.scale * ops.LOG2E)
            - lax.broadcast_in_dim(lse, (64, Q), (1,))
        )
        p = _masked(
            p,
            memory,
            key=key,
            query=i * Q,
            warpgroup=warpgroup,
            needed=(i * Q < key + 63) | (i >= unmasked_end),
        )
        p_T = p.astype(shape.dtype)
        if shape.early_dv:
            ops.accumulate(dv_sum, p_T, dout)
        delta = plgpu.load(memory.delta.at[stage], layout=ops.COLUMNS)
        dp = ops.read(dp_sum, in_flight=1 if shape.early_dv else 0)
        ds_T = p * (dp - lax.broadcast_in_dim(delta, (64, Q), (1,)))
        return p_T, ds_T.astype(shape.dtype)

    p_T, ds_T = ops.accumulators(scores, (64, Q), (64, Q))
    if not shape.early_dv:
        ops.accumulate(dv_sum, p_T, dout)
    if shape.dq:
        _add_dq(shape, memory, ds_T, dk_sum, dq, b=b, n=n, i=i, s=s, warpgroup=warpgroup)
    else:
        ops.accumulate(dk_sum, ds_T, q)


def _add_dq(shape: Shape, memory: _Memory, ds_T, dk_sum, dq, *, b, n, i, s, warpgroup):
    """Computes and stores this warpgroup's part of dQ; starts dK after it."""
    stage, ds = _stage(s), memory.ds.at[lax.rem(s, jnp.int32(2))]
    ds.at[pl.ds(warpgroup * 64, 64)][...] = ds_T
    plgpu.commit_smem()
    # This also signals that the other warpgroup has read the dS of two steps ago.
    plgpu.barrier_arrive(memory.ds_full)
    plgpu.barrier_wait(memory.ds_full)

    def matmuls(dq_sum):
        rows, columns = _part(shape, warpgroup)
        ops.accumulate(dq_sum, ds.at[:, rows].transpose((1, 0)), memory.k.at[:, columns])
        ops.accumulate(dk_sum, ds_T, memory.q.at[stage])
        part = ops.read(dq_sum, in_flight=1)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        memory.dq.at[warpgroup][...] = part * shape.scale
        plgpu.commit_smem()
        at = pl.ds(i * shape.Q + rows.start, 64)
        ops.add_to_global(memory.dq.at[warpgroup], dq.at[b, at, n, columns])

    ops.accumulators(matmuls, (64, 64))


def _part(shape: Shape, warpgroup):
    """Returns the 64 rows and 64 columns of dQ's [Q, H] tile that a warpgroup computes."""
    mine, all_64 = pl.ds(warpgroup * 64, 64), pl.ds(0, 64)
    return (all_64, mine) if shape.H == 128 else (mine, all_64)


def _masked(p, memory: _Memory, *, key, query, warpgroup, needed):
    """Returns p [64 keys, Q queries], zero where the query does not see the key."""

    def mask(p):
        column = plgpu.load(memory.index.at[pl.ds(0, p.shape[1])], layout=ops.COLUMNS)
        row = plgpu.load(memory.index.at[pl.ds(p.shape[1], 64)], layout=ops.ROWS) + (key - query)
        end = plgpu.load(memory.q_end.at[pl.ds(warpgroup * 64, 64)], layout=ops.ROWS) - query
        at = lax.broadcast_in_dim(column, p.shape, (1,))
        seen = (at >= lax.broadcast_in_dim(row, p.shape, (0,))) & (
            at <= lax.broadcast_in_dim(end, p.shape, (0,))
        )
        return jnp.where(seen, p, 0.0)

    return lax.cond(needed, mask, lambda p: p, p)
