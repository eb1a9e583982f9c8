"""Attention on Hopper GPUs: Pallas Mosaic GPU kernels, forward and backward.

This module declares which calls the kernels support. forward.py and backward.py require jax 0.11
and are imported on first use.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import jax.version

from qwen_jax.kernels.backend import Call, differentiable
from qwen_jax.kernels.platform import interpret_mode
from qwen_jax.types import Array

PLATFORM = "gpu"
# Words in device kinds, such as "NVIDIA H100 80GB HBM3" and "NVIDIA GH200 480GB". All have compute
# capability 9.0, the only one with wgmma instructions.
KINDS = ("H100", "H200", "H800", "H20", "GH200")
HEAD_SIZES = (64, 128)


def refuse(call: Call) -> str | None:
    """Returns why the kernels cannot run the call; None if they can."""
    if jax.version.__version_info__ < (0, 11):
        return f"requires jax 0.11 or newer (and Python 3.12), not {jax.__version__}"
    if interpret_mode() is None and not _is_hopper(call.target.kind):
        return (
            f"runs only on Hopper GPUs ({', '.join(KINDS)}), but this is a {call.target.kind}; "
            "use cudnn or xla"
        )
    if call.T != call.S:
        return "supports only full sequences (as many queries as keys)"
    if call.dtype == jnp.float32:
        return "does not support float32, which tensor cores round to TF32; use bfloat16, or xla"
    if call.dtype not in (jnp.bfloat16, jnp.float16):
        return f"supports bfloat16 and float16, not {call.dtype}"
    if call.H not in HEAD_SIZES:
        return f"supports head sizes 64 and 128, not {call.H}"
    return None


def _is_hopper(kind: str) -> bool:
    """Matches full words: "H20" matches "NVIDIA H20" but not "NVIDIA H2000"."""
    return any(word in KINDS for word in kind.replace("-", " ").split())


def _forward(*args, scale: float):
    return importlib.import_module("qwen_jax.kernels.hopper.forward").forward(*args, scale=scale)


def _backward(*args, scale: float, deterministic: bool):
    module = importlib.import_module("qwen_jax.kernels.hopper.backward")
    return module.backward(*args, scale=scale, deterministic=deterministic)


_attention = differentiable(_forward, functools.partial(_backward, deterministic=False))
deterministic_attention = differentiable(_forward, functools.partial(_backward, deterministic=True))


def attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, segment_ids, positions, window, scale: float
) -> Array:
    """See kernels.attention.attention, which checks the arguments.

    Gradients of q are summed in no fixed order, so their last bits differ between runs. The results
    of `deterministic_attention`, which has the same signature, are bitwise equal in every run.
    """
    return _attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        segment_ids=segment_ids,
        positions=positions,
        window=window,
        scale=scale,
    )
