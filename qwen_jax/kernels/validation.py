"""Checks the numerics of a backend: outputs and gradients against float32, on random inputs.

Tests, benchmarks and the start of a run on an accelerator use the same criterion: the error of the
backend is at most about twice that of plain JAX in the same precision.

B batch, T positions, N heads, K key-value heads, H head size.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.errors import KernelError
from qwen_jax.kernels.attention import attention
from qwen_jax.kernels.platform import interpret_mode
from qwen_jax.types import Array

NAMES = ("out", "dq", "dk", "dv")
_NO_LIMIT = np.int32(2**31 - 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """One random input."""

    T: int
    B: int = 1
    N: int = 4
    K: int = 2
    H: int = 64
    dtype: str = "bfloat16"
    window: int | None = None
    # Lengths of the packed documents; the rest of T is padding. None: one document, no segment ids.
    documents: tuple[int, ...] | None = None
    seed: int = 0

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Returns q, k, v and the cotangent of the output.

        They are drawn by NumPy, since JAX would compile its generator for each shape.
        """
        rng = np.random.default_rng(self.seed)
        q, k, v, dout = (
            jnp.asarray(
                rng.standard_normal((self.B, self.T, n, self.H), np.float32).astype(
                    jnp.dtype(self.dtype)
                )
            )
            for n in (self.N, self.K, self.K, self.N)
        )
        return q, k, v, dout

    def options(self) -> dict:
        """Returns segment_ids and window for `attention`."""
        options: dict[str, Any] = {} if self.window is None else {"window": self.window}
        if self.documents is not None:
            ids = np.repeat(np.arange(1, len(self.documents) + 1), self.documents)
            padded = np.pad(ids, (0, self.T - len(ids))).astype(np.int32)
            options["segment_ids"] = jnp.asarray(np.tile(padded[None], (self.B, 1)))
        return options


def repeated(T: int, lengths: tuple[int, ...], *, padding: int = 0) -> tuple[int, ...]:
    """Returns `lengths`, repeated up to T - padding tokens; the last one is truncated."""
    documents, left = [], T - padding
    while left > 0:
        documents.append(min(lengths[len(documents) % len(lengths)], left))
        left -= documents[-1]
    return tuple(documents)


def masks(T: int) -> dict[str, dict]:
    """Returns the masks of the test grid by name, as arguments of Case for T tokens."""
    found = {"causal": {}, "window": {"window": max(1, T // 3)}, "window of one": {"window": 1}}
    if T > 1:
        found |= {
            "packed": {"documents": repeated(T, (T // 3 + 1, 1, T // 4 + 1))},
            "single tokens": {"documents": (1,) * T},
            "padded": {"documents": repeated(T, (T // 4 + 1, 1), padding=T // 3)},
            "packed, window, padding": {
                "documents": repeated(T, (T // 3 + 1,), padding=T // 5),
                "window": T // 5 + 1,
            },
        }
    return found


def error_ratios(case: Case, implementation: str | None = None) -> dict[str, float]:
    """Returns the largest error of out, dq, dk and dv, each divided by its tolerance.

    A ratio above 1 is a failure. The tolerance is twice the error of plain JAX in the case's dtype,
    plus a floor: a few units in the last place of the largest value and of float32 sums of this
    size. The floor is for cases in which plain JAX happens to be exact, such as a token that sees
    only itself, where the gradient of its score is 0 by cancellation.
    """
    arrays, options = case.arrays(), case.options()
    got = _outcome(*arrays, options, how=implementation, mode=interpret_mode())
    exact = [jnp.asarray(np.asarray(x, np.float32)) for x in arrays]
    ones = np.ones((case.B, case.T), np.int32)
    all_options = {"segment_ids": ones, "window": _NO_LIMIT} | options  # one program per shape
    expected = _outcome(*exact, all_options, how="reference")
    rough = _outcome(*arrays, all_options, how="plain")
    result = {}
    for name, want, have, near in zip(NAMES, expected, got, rough, strict=True):
        want, have, near = (np.asarray(x, np.float32) for x in (want, have, near))
        floor = 4 * float(jnp.finfo(case.dtype).eps) * np.abs(want).max() + 64 * float(
            jnp.finfo(jnp.float32).eps
        )
        error = np.abs(have - want).max()  # NaN stays NaN, and no comparison holds for it
        result[name] = float(error / (2 * np.abs(near - want).max() + floor))
    return result


@functools.partial(jax.jit, static_argnames=("how", "mode"))
def _outcome(q, k, v, dout, options, *, how, mode=None):
    """Returns out, dq, dk, dv. Masks are arguments, so cases of one shape share a program."""
    del mode  # part of the jit cache key: a function traced as interpreted stays interpreted
    attend = plain if how == "plain" else functools.partial(attention, implementation=how)
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, **options), q, k, v)
    return (out, *pull(dout))


def plain(
    q: Array,
    k: Array,
    v: Array,
    *,
    segment_ids: Array | None = None,
    window: Array | int | None = None,
) -> Array:
    """Computes softmax(q k^T / sqrt(H)) v in plain JAX, with all arrays in the inputs' dtype."""
    T, G = q.shape[1], q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, G, axis=2), jnp.repeat(v, G, axis=2)
    t = jnp.arange(T)
    mask = (t[None, :] <= t[:, None])[None]
    if window is not None:
        mask = mask & (t[:, None] - t[None, :] < window)[None]
    if segment_ids is not None:
        same = segment_ids[:, :, None] == segment_ids[:, None, :]
        mask = mask & same & (segment_ids != 0)[:, :, None]
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    mask = jnp.broadcast_to(mask[:, None], scores.shape)
    scores = jnp.where(mask, scores, jnp.asarray(-1e30, q.dtype))
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), jnp.asarray(0, q.dtype))
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v)


def check(case: Case, implementation: str | None = None) -> dict[str, float]:
    """Returns `error_ratios`, and raises if a ratio is above 1 or NaN.

    Raises:
      KernelError: the backend does not compute attention correctly on this device.
    """
    found = error_ratios(case, implementation)
    if not all(ratio <= 1 for ratio in found.values()):
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items())
        raise KernelError(
            f"attention is wrong on this device: errors divided by their tolerances: {ratios}.",
            f"attention(implementation={implementation!r}), {case}",
            "use another backend (--model.attention=xla), and report this with the versions of "
            "jax and the driver.",
        )
    return found
