"""The public attention op: causal, with packed documents, windows and grouped heads.

`attention` selects one of several backends. Backends do not depend on models or meshes, and share
one mask representation (mask.py).

B batch, T query positions, S key positions, N heads, K key-value heads, H head size.
"""

import importlib
import math
import types
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from qwen_jax.errors import KernelError, unknown_name
from qwen_jax.kernels.backend import Call
from qwen_jax.kernels.platform import interpret_mode, target_of
from qwen_jax.types import Array

# Name -> module, imported on first use, so a CPU run never imports Pallas. Each module has
# `attention` (with the signature of reference.attention), `refuse(call)` (returns None, or why it
# cannot run the call) and PLATFORM (the platform of its custom calls, which the compiler does not
# partition; None: plain JAX, which runs and is partitioned on any platform).
IMPLEMENTATIONS = {
    "reference": "qwen_jax.kernels.reference",
    "xla": "qwen_jax.kernels.xla",
    "tpu": "qwen_jax.kernels.tpu.backend",
    "hopper": "qwen_jax.kernels.hopper.backend",
    "hopper_deterministic": "qwen_jax.kernels.hopper.deterministic",
    "cudnn": "qwen_jax.kernels.cudnn",
}
# Platform -> backends in order of preference. The first one that can run the call is used.
PREFERENCE = {"tpu": ("tpu", "xla"), "gpu": ("hopper", "cudnn", "xla"), "cpu": ("xla",)}


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    segment_ids: Array | None = None,
    positions: Array | None = None,
    window: Array | int | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> Array:
    """Computes causal attention. Query head n attends to key-value head n // (N / K).

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H] in q's dtype; K divides N. With T < S, the queries are the last T tokens.
      segment_ids: int32 [B, T], only with T == S: contiguous runs, one per document. 0 is padding:
        it neither attends nor is attended to, and its output is zero.
      positions: int32 [B, T]: with T != S, the index of each query on the key axis (default: the
        last T). With T == S, the array order determines positions, and this has no effect.
      window: number of tokens that each query sees, including itself; may be traced. None: no
        limit.
      scale: factor of the scores; None: 1 / sqrt(H).
      implementation: name of a backend ("reference", "xla", "tpu", "hopper",
        "hopper_deterministic", "cudnn"); None: the best one for the device of the arrays or, when
        traced, for the target device of the program.

    Returns:
      Output, [B, T, N, H] in q's dtype. Softmax statistics are float32.

    Raises:
      KernelError: invalid shapes or dtypes, non-contiguous segment ids, a window below 1, an
        unknown implementation, or no implementation that can run here (with the reason of each).

    Example:
      >>> out = attention(q, k, v, segment_ids=batch.segment_ids, window=1024)
    """
    _check_shapes(q, k, v, segment_ids, positions)
    _check_values(q.shape[1], k.shape[1], segment_ids, positions, window)
    module = choose(call_of(q, k, segment_ids=segment_ids, window=window), implementation).module
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return module.attention(
        q, k, v, segment_ids=segment_ids, positions=positions, window=window, scale=scale
    )


def call_of(q: Array, k: Array, *, segment_ids: Array | None, window) -> Call:
    """Returns the Call that describes these arguments to a backend."""
    known = (
        "traced" if isinstance(window, jax.core.Tracer) else None if window is None else int(window)
    )
    return Call(
        target=target_of(q),
        B=q.shape[0],
        T=q.shape[1],
        S=k.shape[1],
        N=q.shape[2],
        K=k.shape[2],
        H=q.shape[3],
        dtype=q.dtype,
        segments=segment_ids is not None,
        window=known,
    )


class Choice(NamedTuple):
    """The selected backend, and why the backends preferred over it cannot run the call."""

    name: str
    module: types.ModuleType
    refused: dict[str, str]  # name of a backend -> reason

    def __str__(self) -> str:
        return self.name + "".join(f" ({name}: {why})" for name, why in self.refused.items())


def choose(call: Call, implementation: str | None = None) -> Choice:
    """Returns the backend that runs `call`: `implementation`, or the best one if it is None.

    Raises:
      KernelError: the name is unknown, or no backend can run the call (with the reason of each).
    """
    if implementation is None:
        names = PREFERENCE.get(call.target.platform, ("xla",))
    elif implementation in IMPLEMENTATIONS:
        names = (implementation,)
    else:
        raise unknown_name(
            "implementation",
            implementation,
            IMPLEMENTATIONS,
            "attention(implementation=)",
            KernelError,
        )
    reasons = {}
    for name in names:
        reasons[name] = refusal(name, call)
        if reasons[name] is None:
            module = importlib.import_module(IMPLEMENTATIONS[name])
            return Choice(name, module, {n: why for n, why in reasons.items() if why})
    for name in IMPLEMENTATIONS:
        if name not in reasons:
            reasons[name] = refusal(name, call)
    verdicts = "; ".join(f"{name}: {reason or 'can run it'}" for name, reason in reasons.items())
    raise KernelError(
        f"this call cannot run on {', '.join(names)}. {verdicts}.",
        f"attention(implementation={implementation!r}) on {call.target}",
        "choose a backend that can run it, or omit `implementation`.",
    )


def refusal(name: str, call: Call) -> str | None:
    """Returns why the backend `name` cannot run the call; None if it can."""
    module = importlib.import_module(IMPLEMENTATIONS[name])
    needs = module.PLATFORM
    if needs and call.target.platform != needs and interpret_mode() is None:
        return (
            f"runs on a {needs.upper()}, but this call is for {call.target} (to compile for "
            "another device, pass arrays with a NamedSharding over its mesh, or use "
            "jax.sharding.use_abstract_mesh; to interpret the kernel on a CPU, use "
            "qwen_jax.kernels.platform.interpret_kernels)"
        )
    return module.refuse(call)


def _check_shapes(q, k, v, segment_ids, positions) -> None:
    shapes = f"q {q.shape} {q.dtype}, k {k.shape} {k.dtype}, v {v.shape} {v.dtype}"

    def refuse(what: str, fix: str) -> KernelError:
        return KernelError(f"{what} ({shapes}).", "attention", fix)

    if not q.ndim == k.ndim == v.ndim == 4:
        raise refuse("q, k and v must have 4 dimensions", "use [B, T, N, H] and [B, S, K, H].")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise refuse("batch or head sizes differ", "q is [B, T, N, H]; k and v are [B, S, K, H].")
    if not all(q.shape) or not all(k.shape):
        raise refuse(
            "an axis is empty", "pass at least one sequence, token, head and head element."
        )
    if q.shape[2] % k.shape[2]:
        raise refuse(
            f"{k.shape[2]} key-value heads do not divide {q.shape[2]} heads",
            "use a number of query heads that is a multiple of the key-value heads.",
        )
    if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
        raise refuse("dtypes differ or are not floating point", "cast q, k and v to one dtype.")
    if q.shape[1] > k.shape[1]:
        raise refuse(
            "there are more queries than keys; queries are the last T of S tokens", "pass all keys."
        )
    for name, array in (("segment_ids", segment_ids), ("positions", positions)):
        if array is not None and (array.shape != q.shape[:2] or array.dtype != jnp.int32):
            raise refuse(
                f"{name} is {array.dtype} {array.shape}, not int32 {q.shape[:2]}",
                f"pass int32 {name} of shape [B, T].",
            )
    if segment_ids is not None and q.shape[1] != k.shape[1]:
        raise refuse(
            "segment_ids require as many queries as keys",
            "omit them when decoding with a cache.",
        )


def _check_values(T: int, S: int, segment_ids, positions, window) -> None:
    """Checks concrete values. Under jit they are traced, and the caller guarantees them."""
    if window is not None:
        if jnp.ndim(window) != 0 or not jnp.issubdtype(jnp.result_type(window), jnp.integer):
            raise KernelError(
                f"window={window} is not a single integer.",
                "attention(window=)",
                "pass the number of tokens that each query sees, including itself, or None.",
            )
        if not isinstance(window, jax.core.Tracer) and int(window) < 1:
            raise KernelError(
                f"window={window} hides every token.",
                "attention(window=)",
                "use 1 or more (1: each token sees only itself), or None.",
            )
    if segment_ids is not None and not isinstance(segment_ids, jax.core.Tracer):
        ids = np.asarray(segment_ids)
        for sequence, values in enumerate(ids):
            runs = values[np.flatnonzero(np.diff(values, prepend=values[0] - 1))]
            runs = runs[runs != 0]
            if len(np.unique(runs)) != len(runs):
                raise KernelError(
                    f"segment ids of sequence {sequence} are not contiguous: a document resumes "
                    "after another one.",
                    "attention(segment_ids=)",
                    "give every document of a sequence its own id, in one contiguous run.",
                )
    if positions is not None and T != S and not isinstance(positions, jax.core.Tracer):
        if np.any(np.asarray(positions) < 0) or np.any(np.asarray(positions) >= S):
            raise KernelError(
                f"positions must be in 0..{S - 1}, the range of the key axis.",
                "attention(positions=)",
                "pass the index of each query on the key axis.",
            )
