"""NVIDIA's cuDNN attention: a fallback on GPUs and a baseline for benchmarks.

JAX's public function does not expose packed documents for cuDNN, so this backend refuses them:
ignoring segment ids would train on the wrong loss.
"""

import jax
import jax.numpy as jnp

from qwen_jax.kernels.backend import Call
from qwen_jax.types import Array

PLATFORM = "gpu"


def refuse(call: Call) -> str | None:
    """Returns why cuDNN cannot run the call; None if it can."""
    if call.segments:
        return "does not support packed documents"
    if call.T != call.S:
        return "supports only full sequences (as many queries as keys)"
    if call.window == "traced":
        return "requires a window that is known at compile time"
    if call.dtype not in (jnp.bfloat16, jnp.float16):
        return f"supports bfloat16 and float16, not {call.dtype}"
    if call.H > 128 or call.H % 8:
        return f"supports head sizes that are multiples of 8 up to 128, not {call.H}"
    return None


def attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, segment_ids, positions, window, scale: float
) -> Array:
    """See kernels.attention.attention, which checks the arguments."""
    del segment_ids, positions
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        is_causal=True,
        scale=scale,
        implementation="cudnn",
        local_window_size=None if window is None else (int(window) - 1, 0),
    )
