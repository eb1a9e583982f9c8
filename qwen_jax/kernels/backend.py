"""An attention op from a pair of kernels, forward and backward: the custom_vjp that they share.

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

# What a remat policy keeps so that the forward kernel does not run again in the backward pass.
RESIDUALS = ("attention_out", "attention_lse")


@dataclasses.dataclass(frozen=True)
class Call:
    """What a back end is asked for: it answers with its reason to refuse, or None."""

    target: Target
    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    dtype: jnp.dtype
    segments: bool
    window: int | str | None  # "traced": a number that is known on the device alone


@dataclasses.dataclass(frozen=True)
class Block:
    """Attention of some queries to as many keys of their row: what ring attention puts together.

    A query sees the keys k_start <= key <= k_end, counted within the block; none if k_end is less.

    Attributes:
      forward: (q, k, v, k_start_BT, k_end_BT, *, scale) -> (out, lse): float32 [B, T, N, H] and the
        log-sum-exp [B, N, T], 1e30 where a query sees nothing.
      backward: (q, k, v, k_start, k_end, out, lse, dout, *, scale) -> float32 (dq, dk, dv), what
        the block adds to them; `out` and `lse` are those of the whole row.
      base: of the logarithm.
    """

    forward: Callable
    backward: Callable
    base: float


def differentiable(forward: Callable, backward: Callable) -> Callable:
    """attention(q, k, v, *, segment_ids, positions, window, scale) for whole rows (T == S).

    Args:
      forward: (q_BTNH, k_BTKH, v_BTKH, k_start_BT, q_end_BT, *, scale) -> (out_BTNH, lse), with
        lse any array that leads with B and holds the log-sum-exp of each query and head.
      backward: (q, k, v, k_start, q_end, out, lse, dout, *, scale) -> (dq, dk, dv).

    Under vmap, the mapped axis joins the batch: a kernel is never traced with another rank.
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
        del positions  # order is that of the row
        B, T = q_BTNH.shape[:2]
        k_start = mask.first_key(B, T, T, segment_ids=segment_ids, positions=None, window=window)
        q_end = mask.last_query(B, T, segment_ids=segment_ids, window=window)
        return op(q_BTNH, k_BSKH, v_BSKH, k_start, q_end, scale)

    return attention


def _batched(function: Callable) -> Callable:
    """`function` of arrays that lead with B; vmap folds its axis into B."""
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
