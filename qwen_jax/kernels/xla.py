"""Attention in plain XLA without a [T, S] array: the path of the CPU, and of every other device.

Queries are taken in blocks whose keys end where causality ends them (static slices), so almost half
of the square is never computed; the backward pass recomputes weights from the log-sum-exp.

B batch, T query positions, S key positions, N heads, K key-value heads, G = N / K, H head size,
C queries in a chunk.
"""

import functools

import jax
import jax.numpy as jnp

from qwen_jax.kernels import mask
from qwen_jax.types import Array

_MASKED = -1e30  # finite: exp(_MASKED - _MASKED) is 1 and no NaN; masked rows are zeroed after
_NOTHING_VISIBLE = 1e30  # the log-sum-exp of a row that sees nothing: exp(s - this) is 0


PLATFORM = None


def refuse(call) -> str | None:
    """Runs everything."""
    del call
    return None


def attention(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, segment_ids, positions, window,
              scale: float) -> Array:
    """See kernels.attention.attention; arguments are checked there."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    k_end = None if T == S else mask.query_index(B, T, S, positions)
    k_start = None
    if segment_ids is not None or window is not None:
        k_start = mask.first_key(B, T, S, segment_ids=segment_ids, positions=positions,
                                 window=window)
        # Computed once, and not again for every score it is compared with.
        k_start = jax.lax.optimization_barrier(k_start)
    out = _attend(q, k, v, k_start, k_end, scale)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _blocks(T: int) -> list[tuple[int, int, int]]:
    """(begin, end, chunk): runs of queries that share their keys' end, each taken chunk by chunk.

    Keys end where a block ends, so about eight blocks compute 9/16 of the square. Within a block a
    scan keeps one chunk's scores alive; unrolled chunks would all be.
    """
    chunk = 128 if T <= 1024 else 256
    size = chunk * -(-T // (8 * chunk))
    whole = T - T % chunk
    blocks = [(begin, min(begin + size, whole), chunk) for begin in range(0, whole, size)]
    return blocks + ([(whole, T, T - whole)] if whole < T else [])


def _over_chunks(step, carry, begin: int, end: int, chunk: int, sliced: tuple):
    """Scans step(carry, first query, pieces of `sliced`) over a block.

    `sliced` holds (array, axis of the queries) pairs or None; so does what comes back, pieces joined.
    """
    if end - begin == chunk:
        pieces = [s and jax.lax.slice_in_dim(s[0], begin, end, axis=s[1]) for s in sliced]
        return step(carry, jnp.int32(begin), pieces)
    starts = jnp.arange(begin, end, chunk, dtype=jnp.int32)

    def body(carry, start):
        pieces = [s and jax.lax.dynamic_slice_in_dim(s[0], start, chunk, axis=s[1])
                  for s in sliced]
        return step(carry, start, pieces)

    carry, stacked = jax.lax.scan(body, carry, starts)
    joined = [jnp.moveaxis(out, 0, 3).reshape(*out.shape[1:4], end - begin, *out.shape[5:])
              for out in stacked]
    return carry, joined


def _scores(q_BKGCH, k_BKSH, k_start, k_end, begin: Array, scale: float):
    """Masked scores of one chunk of queries, float32 [B, K, G, C, S]."""
    C, S = q_BKGCH.shape[3], k_BKSH.shape[2]
    scores = jnp.einsum("BKGCH,BKSH->BKGCS", q_BKGCH, k_BKSH,
                        preferred_element_type=jnp.float32) * jnp.float32(scale)
    key = jnp.arange(S, dtype=jnp.int32)
    if k_end is None:
        last = begin + jnp.arange(C, dtype=jnp.int32)
        mask = (key[None, :] <= last[:, None])[None, None, None]
    else:
        mask = (key[None, None, :] <= k_end[:, :, None])[:, None, None]
    if k_start is not None:
        mask = mask & (key[None, None, :] >= k_start[:, :, None])[:, None, None]
    return jnp.where(jnp.broadcast_to(mask, scores.shape), scores, jnp.float32(_MASKED))


def _pair(array: Array | None, axis: int):
    return None if array is None else (array, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q_BKGTH, k_BKSH, v_BKSH, k_start, k_end, scale):
    return _forward(q_BKGTH, k_BKSH, v_BKSH, k_start, k_end, scale)[0]


def _forward(q_BKGTH, k_BKSH, v_BKSH, k_start, k_end, scale):
    outs, lses = [], []
    for begin, end, chunk in _blocks(q_BKGTH.shape[3]):
        stop = k_BKSH.shape[2] if k_end is not None else end
        k_S, v_S = k_BKSH[:, :, :stop], v_BKSH[:, :, :stop]

        def step(carry, start, pieces, k_S=k_S, v_S=v_S):
            q_C, k_start_C, k_end_C = pieces
            scores = _scores(q_C, k_S, k_start_C, k_end_C, start, scale)
            top = jnp.max(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            out = jnp.einsum("BKGCS,BKSH->BKGCH", weights.astype(v_S.dtype), v_S,
                             preferred_element_type=jnp.float32) / total
            lse = (top + jnp.log(total))[..., 0]
            if k_start_C is not None:  # only then can a row see nothing
                empty = top <= _MASKED / 2
                out = jnp.where(empty, 0.0, out)
                lse = jnp.where(empty[..., 0], jnp.float32(_NOTHING_VISIBLE), lse)
            return carry, (out.astype(q_C.dtype), lse)

        _, (out, lse) = _over_chunks(
            step, (), begin, end, chunk,
            ((q_BKGTH, 3), _pair(k_start, 1), _pair(k_end, 1)))
        outs.append(out)
        lses.append(lse)
    out, lse = jnp.concatenate(outs, axis=3), jnp.concatenate(lses, axis=3)
    return out, (q_BKGTH, k_BKSH, v_BKSH, k_start, k_end, out, lse)


def _backward(scale, residuals, dout_BKGTH):
    q, k, v, k_start, k_end, out, lse = residuals
    f32 = jnp.float32
    delta = jnp.sum(dout_BKGTH.astype(f32) * out.astype(f32), axis=-1)
    blocks = _blocks(q.shape[3])
    # Gradients of keys and values are added up in pieces that end where blocks end, so that no
    # addition touches keys that a block did not see.
    pieces = [block[:2] for block in blocks] if k_end is None else [(0, k.shape[2])]
    dq, dk, dv = [], [None] * len(pieces), [None] * len(pieces)
    for begin, end, chunk in blocks:
        stop = k.shape[2] if k_end is not None else end
        k_S, v_S = k[:, :, :stop], v[:, :, :stop]

        def step(carry, start, sliced, k_S=k_S, v_S=v_S):
            q_C, dout_C, lse_C, delta_C, k_start_C, k_end_C = sliced
            scores = _scores(q_C, k_S, k_start_C, k_end_C, start, scale)
            weights = jnp.exp(scores - lse_C[..., None])
            dweights = jnp.einsum("BKGCH,BKSH->BKGCS", dout_C, v_S, preferred_element_type=f32)
            dscores = (weights * (dweights - delta_C[..., None]) * f32(scale)).astype(q.dtype)
            dq_C = jnp.einsum("BKGCS,BKSH->BKGCH", dscores, k_S, preferred_element_type=f32)
            dk_S = jnp.einsum("BKGCS,BKGCH->BKSH", dscores, q_C, preferred_element_type=f32)
            dv_S = jnp.einsum("BKGCS,BKGCH->BKSH", weights.astype(v.dtype), dout_C,
                              preferred_element_type=f32)
            carry = (dk_S, dv_S) if carry is None else (carry[0] + dk_S, carry[1] + dv_S)
            return carry, (dq_C,)

        one_chunk = end - begin == chunk
        zero = None if one_chunk else (jnp.zeros(k_S.shape, f32), jnp.zeros(v_S.shape, f32))
        (dk_S, dv_S), (dq_block,) = _over_chunks(
            step, zero, begin, end, chunk,
            ((q, 3), (dout_BKGTH, 3), (lse, 3), (delta, 3), _pair(k_start, 1), _pair(k_end, 1)))
        dq.append(dq_block)
        for i, (first, last) in enumerate(pieces):
            if last <= stop:
                part = slice(first, last)
                dk[i] = dk_S[:, :, part] if dk[i] is None else dk[i] + dk_S[:, :, part]
                dv[i] = dv_S[:, :, part] if dv[i] is None else dv[i] + dv_S[:, :, part]

    def join(parts, axis, like):
        return jnp.concatenate(parts, axis=axis).astype(like.dtype)

    return join(dq, 3, q), join(dk, 2, k), join(dv, 2, v), None, None


_attend.defvjp(_forward, _backward)
