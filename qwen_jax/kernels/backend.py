"""Builds an attention op from a forward and a backward kernel, with one shared custom_vjp.

B batch, T positions, N heads, K key-value heads, H head size.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwen_jax.kernels import mask
from qwen_jax.kernels.platform import Target
from qwen_jax.types import Array

# With a remat policy that saves these, the backward pass does not rerun the forward kernel.
RESIDUALS = ("attention_out", "attention_lse")


@dataclasses.dataclass(frozen=True)
class Call:
    """The attention call that a backend accepts or refuses (`refuse(call)`)."""

    target: Target
    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    dtype: jnp.dtype
    segments: bool  # whether there are segment ids
    window: int | str | None  # "traced": known only at run time


@dataclasses.dataclass(frozen=True)
class Block:
    """Attention of a chunk of queries to a chunk of keys in one sequence, for ring attention.

    A query sees the keys k_start <= key <= k_end, relative to the chunk; none if k_end < k_start.

    Attributes:
      forward: (q, k, v, k_start_BT, k_end_BT, *, scale) -> (out, lse): float32 [B, T, N, H] and the
        log-sum-exp [B, N, T], which is 1e30 for a query that sees no key.
      backward: (q, k, v, k_start, k_end, out, lse, dout, *, scale) -> float32 (dq, dk, dv), the
        block's contributions; `out` and `lse` are those of the full sequence.
      base: base of the log-sum-exp.
    """

    forward: Callable
    backward: Callable
    base: float


def differentiable(forward: Callable, backward: Callable) -> Callable:
    """Returns attention(q, k, v, *, segment_ids, positions, window, scale) for T == S.

    Args:
      forward: (q_BTNH, k_BTKH, v_BTKH, k_start_BT, q_end_BT, *, scale) -> (out_BTNH, lse), where
        lse is any array with leading axis B that holds the log-sum-exp of each query and head.
      backward: (q, k, v, k_start, q_end, out, lse, dout, *, scale) -> (dq, dk, dv).

    Under vmap, the mapped axis is folded into the batch, so kernels need not support more axes.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
    def op(q, k, v, k_start, q_end, scale):
        return run_forward(q, k, v, k_start, q_end, scale)[0]

    def run_forward(q, k, v, k_start, q_end, scale):
        return _batched(functools.partial(forward, scale=scale))(q, k, v, k_start, q_end)

    def op_forward(q, k, v, k_start, q_end, scale):
        out, lse = run_forward(q, k, v, k_start, q_end, scale)
        out, lse = (checkpoint_name(x, name) for x, name in zip((out, lse), RESIDUALS, strict=True))
        return out, (q, k, v, k_start, q_end, out, lse)

    def op_backward(scale, residuals, dout):
        grads = _batched(functools.partial(backward, scale=scale))(*residuals, dout)
        return (*grads, None, None)

    op.defvjp(op_forward, op_backward)

    def attention(
        q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, segment_ids, positions, window, scale: float
    ) -> Array:
        del positions  # with T == S, the array order determines positions
        B, T = q_BTNH.shape[:2]
        k_start = mask.first_key(B, T, T, segment_ids=segment_ids, positions=None, window=window)
        q_end = mask.last_query(B, T, segment_ids=segment_ids, window=window)
        return op(q_BTNH, k_BSKH, v_BSKH, k_start, q_end, scale)

    return attention


def _batched(function: Callable) -> Callable:
    """Wraps a function of arrays with leading axis B; vmap folds its axis into B."""
    wrapped = jax.custom_batching.custom_vmap(function)

    @wrapped.def_vmap
    def _rule(axis_size, in_batched, *args):
        folded = [
            x if batched else jnp.broadcast_to(x[None], (axis_size, *x.shape))
            for x, batched in zip(args, in_batched, strict=True)
        ]
        B = folded[0].shape[1]
        results = _batched(function)(*(x.reshape(axis_size * B, *x.shape[2:]) for x in folded))
        results = tuple(x.reshape(axis_size, B, *x.shape[1:]) for x in results)
        return results, tuple(True for _ in results)

    return wrapped
