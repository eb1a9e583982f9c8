"""Attention in plain XLA without a [T, S] array: runs on any device, and is the default on CPUs.

Queries are processed in chunks. A chunk visits only the key tiles between the first and the last
one that any of its queries sees, so tiles that causality, documents or windows hide are not
computed. Scores exist for only one tile at a time, which fits into a CPU's caches. The forward pass
is an online softmax; the backward pass recomputes weights from the log-sum-exp.

Every matmul contracts the last axis of its left operand, so transposed keys, values and queries are
stored too. XLA:CPU would transpose any other left operand before each matmul, which took longer
than the matmuls (three to ten times as long for the gradients of keys and values).

B batch, T query positions, S key positions, N heads, K key-value heads, G = N / K, H head size;
P groups of R sequences, Q chunks of C queries, J tiles of W keys; M = G C rows of a tile's scores.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from qwen_jax.kernels import mask, tiles
from qwen_jax.kernels.backend import Block
from qwen_jax.kernels.platform import target_of
from qwen_jax.types import Array

PLATFORM = None

_MASKED = -1e30  # finite, so exp(_MASKED - _MASKED) is 1, not NaN; masked rows are zeroed later
_NOTHING_VISIBLE = 1e30  # log-sum-exp of a query that sees no key: exp(s - this) is 0
F32 = jnp.float32


def refuse(call) -> str | None:
    """Returns None: this backend can run every call."""
    del call
    return None


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The sizes of groups, chunks and tiles, and the scale of the scores."""

    R: int  # sequences in a group
    C: int  # queries in a chunk
    W: int  # keys in a tile
    scale: float

    @classmethod
    def of(cls, q_BTNH: Array, S: int, scale: float) -> "_Sizes":
        B, T, N, H = q_BTNH.shape
        target, side = target_of(q_BTNH), 128 if T <= 1024 else 256
        tile_sizes = tiles.lookup(
            "xla",
            kind=target.kind,
            head_size=H,
            dtype=q_BTNH.dtype.name,
            default={"query": side, "key": side},
        )
        C, W = min(tile_sizes["query"], _round_up(T, 8)), min(tile_sizes["key"], _round_up(S, 8))
        # On a CPU, a tile of scores fits into the caches, and is large enough to amortize the
        # overhead of each operation. Groups are small, because a group computes all tiles that any
        # of its sequences sees.
        fit = [r for r in range(1, B + 1) if B % r == 0 and r * N * C * W <= 2**20]
        return cls(max(fit, default=1) if target.platform == "cpu" else B, C, W, scale)


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, segment_ids, positions, window, scale: float
) -> Array:
    """See kernels.attention.attention, which checks the arguments."""
    B, T = q_BTNH.shape[:2]
    S = k_BSKH.shape[1]
    sizes = _Sizes.of(q_BTNH, S, scale)
    k_start = None
    if segment_ids is not None or window is not None:
        k_start = mask.first_key(
            B, T, S, segment_ids=segment_ids, positions=positions, window=window
        )
    k_end = mask.query_index(B, T, S, positions)
    return _attend(q_BTNH, k_BSKH, v_BSKH, k_start, k_end, sizes)


def _split_queries(x: Array, sizes: _Sizes, K: int, *, transposed: bool = False) -> Array:
    """[B, T, N, H] -> [P, Q, R, K, M, H], or [P, Q, R, K, H, M]; pads T with zeros."""
    B, T, N, H = x.shape
    C, R = sizes.C, sizes.R
    x = jnp.pad(x, ((0, 0), (0, _round_up(T, C) - T), (0, 0), (0, 0)))
    x = x.reshape(B // R, R, -1, C, K, N // K, H)
    order = (0, 2, 1, 4, 6, 5, 3) if transposed else (0, 2, 1, 4, 5, 3, 6)
    x = x.transpose(order)
    return x.reshape(*x.shape[:5], -1) if transposed else x.reshape(*x.shape[:4], -1, H)


def _join_queries(x: Array, T: int, N: int) -> Array:
    """[P, Q, R, K, M, H] -> [B, T, N, H]."""
    P, Q, R, K, M, H = x.shape
    G = N // K
    x = x.reshape(P, Q, R, K, G, M // G, H).transpose(0, 2, 1, 5, 3, 4, 6)
    return x.reshape(P * R, -1, N, H)[:, :T]


def _split_keys(x: Array, sizes: _Sizes, *, transposed: bool = False) -> Array:
    """[B, S, K, H] -> [P, J, R, K, W, H], or [P, J, R, K, H, W]; pads S with zeros."""
    B, S, K, H = x.shape
    W, R = sizes.W, sizes.R
    x = jnp.pad(x, ((0, 0), (0, _round_up(S, W) - S), (0, 0), (0, 0)))
    x = x.reshape(B // R, R, -1, W, K, H)
    return x.transpose((0, 2, 1, 4, 5, 3) if transposed else (0, 2, 1, 4, 3, 5))


def _join_keys(x: Array, S: int) -> Array:
    """[P, J, R, K, H, W] -> [B, S, K, H]."""
    P, J, R, K, H, W = x.shape
    return x.transpose(0, 2, 1, 5, 3, 4).reshape(P * R, J * W, K, H)[:, :S]


def _split_bounds(bound: Array | None, sizes: _Sizes, padding: int) -> Array | None:
    """int32 [B, T] -> [P, Q, R, C]; pads T with `padding`."""
    if bound is None:
        return None
    T = bound.shape[1]
    bound = jnp.pad(bound, ((0, 0), (0, _round_up(T, sizes.C) - T)), constant_values=padding)
    bound = bound.reshape(-1, sizes.R, bound.shape[1] // sizes.C, sizes.C).transpose(0, 2, 1, 3)
    return jax.lax.optimization_barrier(bound)  # so it is computed once, not for every score


def _tiles(k_start_RC: Array | None, k_end_RC: Array, sizes: _Sizes):
    """Returns the first tile that a chunk's queries see, and the tile after the last one."""
    first = 0 if k_start_RC is None else jnp.min(k_start_RC) // sizes.W
    return jnp.int32(first), jnp.max(k_end_RC) // sizes.W + 1


def _scores(q_RKMH: Array, k_RKWH: Array, k_start_RC, k_end_RC, tile: Array, sizes: _Sizes):
    """Returns the masked scores of a chunk's queries and a tile's keys, float32 [R, K, M, W]."""
    scores = _matmul(q_RKMH, k_RKWH, 3) * F32(sizes.scale)
    R, K, M, W = scores.shape
    key = (tile * W + jnp.arange(W, dtype=jnp.int32))[None, None]
    seen = key <= k_end_RC[:, :, None]
    if k_start_RC is not None:
        seen = seen & (key >= k_start_RC[:, :, None])
    seen = jnp.broadcast_to(seen[:, None, None], (R, K, M // sizes.C, sizes.C, W))
    return jnp.where(seen.reshape(scores.shape), scores, F32(_MASKED))


def _matmul(a: Array, b: Array, axis_b: int) -> Array:
    """Contracts a's last axis with an axis of b, for each sequence and head, in float32."""
    return jax.lax.dot_general(
        a, b, (((3,), (axis_b,)), ((0, 1), (0, 1))), preferred_element_type=F32
    )


def _map_groups(function, *arrays):
    """Applies function to each group: maps over the leading axis P of arrays and results."""
    if jax.tree.leaves(arrays)[0].shape[0] == 1:
        results = function(jax.tree.map(lambda x: x[0], arrays))
        return jax.tree.map(lambda x: x[None], results)
    return jax.lax.map(function, arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q_BTNH, k_BSKH, v_BSKH, k_start_BT, k_end_BT, sizes):
    return _forward(q_BTNH, k_BSKH, v_BSKH, k_start_BT, k_end_BT, sizes)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, k_start_BT, k_end_BT, sizes, dtype=None):
    """Returns out, in `dtype` (None: q's), and the residuals of the backward pass."""
    T, N = q_BTNH.shape[1:3]
    K = k_BSKH.shape[2]

    def group(arrays):
        q_Q, k_J, vT_J, k_start_Q, k_end_Q = arrays

        def chunk(_, sliced):
            q, k_start, k_end = sliced

            def step(tile, carry):
                acc, top, total = carry
                scores = _scores(q, k_J[tile], k_start, k_end, tile, sizes)
                above = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
                weights = jnp.exp(scores - above)
                kept = jnp.exp(top - above)
                total = total * kept + jnp.sum(weights, axis=-1, keepdims=True)
                acc = acc * kept + _matmul(weights.astype(vT_J.dtype), vT_J[tile], 3)
                return acc, above, total

            shape = q.shape[:3]
            zero = (
                jnp.zeros(q.shape, F32),
                jnp.full((*shape, 1), _MASKED, F32),
                jnp.zeros((*shape, 1), F32),
            )
            acc, top, total = jax.lax.fori_loop(*_tiles(k_start, k_end, sizes), step, zero)
            empty = top <= _MASKED / 2
            out = jnp.where(empty, 0.0, acc / jnp.where(empty, 1.0, total))
            lse = jnp.where(empty, F32(_NOTHING_VISIBLE), top + jnp.log(total))
            return None, (out.astype(dtype or q.dtype), lse)

        return jax.lax.scan(chunk, None, (q_Q, k_start_Q, k_end_Q))[1]

    out, lse = _map_groups(
        group,
        _split_queries(q_BTNH, sizes, K),
        _split_keys(k_BSKH, sizes),
        _split_keys(v_BSKH, sizes, transposed=True),
        _split_bounds(k_start_BT, sizes, 2**30),
        _split_bounds(k_end_BT, sizes, -1),
    )
    out = _join_queries(out, T, N)
    return out, (q_BTNH, k_BSKH, v_BSKH, k_start_BT, k_end_BT, out, lse)


def _backward(sizes, residuals, dout_BTNH, dtype=None):
    """Returns the gradients of q, k and v in `dtype` (None: q's), and None for the mask."""
    q_BTNH, k_BSKH, v_BSKH, k_start_BT, k_end_BT, out_BTNH, lse = residuals
    (T, N), (S, K) = q_BTNH.shape[1:3], k_BSKH.shape[1:3]
    computed, dtype = q_BTNH.dtype, dtype or q_BTNH.dtype
    delta_BTN1 = jnp.sum(dout_BTNH.astype(F32) * out_BTNH.astype(F32), axis=-1, keepdims=True)

    def group(arrays):
        queries, (k_J, kT_J, v_J) = arrays

        def chunk(grads, sliced):
            q, qT, dout, doutT, lse, delta, k_start, k_end = sliced

            def step(tile, carry):
                dq, dkT_J, dvT_J = carry
                scores = _scores(q, k_J[tile], k_start, k_end, tile, sizes)
                weights = jnp.exp(scores - lse)
                dweights = _matmul(dout, v_J[tile], 3)
                dscores = (weights * (dweights - delta) * F32(sizes.scale)).astype(computed)
                dscores = jax.lax.optimization_barrier(dscores)
                dq = dq + _matmul(dscores, kT_J[tile], 3)
                dkT_J = dkT_J.at[tile].add(_matmul(qT, dscores, 2))
                dvT_J = dvT_J.at[tile].add(_matmul(doutT, weights.astype(computed), 2))
                return dq, dkT_J, dvT_J

            dq, *grads = jax.lax.fori_loop(
                *_tiles(k_start, k_end, sizes), step, (jnp.zeros(q.shape, F32), *grads)
            )
            return tuple(grads), dq.astype(dtype)

        zero = jnp.zeros(kT_J.shape, F32)
        (dkT_J, dvT_J), dq_Q = jax.lax.scan(chunk, (zero, zero), queries)
        return dq_Q, dkT_J.astype(dtype), dvT_J.astype(dtype)

    def split(x, transposed=False):
        return _split_queries(x, sizes, K, transposed=transposed)

    queries = (
        split(q_BTNH),
        split(q_BTNH, True),
        split(dout_BTNH),
        split(dout_BTNH, True),
        lse,
        split(delta_BTN1),
        _split_bounds(k_start_BT, sizes, 2**30),
        _split_bounds(k_end_BT, sizes, -1),
    )
    keys = (
        _split_keys(k_BSKH, sizes),
        _split_keys(k_BSKH, sizes, transposed=True),
        _split_keys(v_BSKH, sizes),
    )
    dq, dkT, dvT = _map_groups(group, queries, keys)
    return _join_queries(dq, T, N), _join_keys(dkT, S), _join_keys(dvT, S), None, None


_attend.defvjp(_forward, _backward)


def _forward_block(q, k, v, k_start, k_end, *, scale: float):
    out, (*_, lse) = _forward(q, k, v, k_start, k_end, _Sizes.of(q, k.shape[1], scale), F32)
    return out, _join_queries(lse, *q.shape[1:3])[..., 0].transpose(0, 2, 1)


def _backward_block(q, k, v, k_start, k_end, out, lse, dout, *, scale: float):
    sizes = _Sizes.of(q, k.shape[1], scale)
    lse = _split_queries(lse.transpose(0, 2, 1)[..., None], sizes, k.shape[2])
    return _backward(sizes, (q, k, v, k_start, k_end, out, lse), dout, F32)[:3]


BLOCK = Block(_forward_block, _backward_block, base=math.e)
