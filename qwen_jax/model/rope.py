"""Rotary embedding in float32, dynamic NTK-aware interpolation, LogN scaling and windows.

Report: 2.3 and 2.5. NTK and LogN apply only at inference and only beyond the training length. The
scaled positions of later models (rope_scaling.py) always apply.

B batch, T positions, N heads, H head size, L layers.
"""

import jax.numpy as jnp
import numpy as np

from qwen_jax.attention_config import RopeScaling
from qwen_jax.config import ModelConfig
from qwen_jax.model.rope_scaling import attention_factor, frequency_factors
from qwen_jax.types import Array

_NO_LIMIT = np.iinfo(np.int32).max


def layer_windows(config: ModelConfig, *, inference: bool = True) -> Array | None:
    """Returns each layer's attention window in tokens, int32 [L], or None for full attention."""
    windows = config.layer_windows(inference=inference)
    if windows is None:
        return None
    return jnp.asarray([_NO_LIMIT if each is None else each for each in windows], jnp.int32)


def depends_on_layer(config: ModelConfig) -> bool:
    """Returns whether the context extension differs between layers, because of their windows."""
    extended = config.extension.dynamic_ntk or config.extension.logn
    return extended and config.layer_windows(inference=True) is not None


def layer_extension(
    length_B: Array, positions_BT: Array, window: Array | int | None, config: ModelConfig
) -> tuple[Array | None, Array | None]:
    """Returns the context extension of a layer: NTK's alpha per sequence, LogN factor per query.

    A layer with window w never compares tokens more than w - 1 apart. Its effective length is
    therefore min(n, w), not the sequence length n. Alpha is that of min(n, w) tokens, and the LogN
    factor of a query at position p is that of position min(p + 1, w), counted from 1. A layer whose
    window is within the training length is not extended. Report 2.5 says only that lower layers
    have shorter windows. A maintainer stated that each layer has its own alpha. How both factors
    depend on the window is our own choice.

    Args:
      length_B: int32, true length of each sequence; with a cache, the length of its prefill.
      positions_BT: int32, positions of the queries.
      window: attention window of this layer, may be traced; None: full attention.

    Returns:
      (alpha_B, query_scale_BT), float32; each is None if config.extension disables it.
    """
    alpha_B = query_scale_BT = None
    if config.extension.dynamic_ntk:
        seen_B = length_B if window is None else jnp.minimum(length_B, window)
        alpha_B = ntk_alpha(seen_B, config.context_length)
    if config.extension.logn:
        last_BT = positions_BT if window is None else jnp.minimum(positions_BT, window - 1)
        query_scale_BT = logn_scale(last_BT, config.context_length)
    return alpha_B, query_scale_BT


def ntk_alpha(length_B: Array, context_length: int) -> Array:
    """Returns NTK's alpha for sequences of true length n; L is the training length.

    alpha = max(1, 2^ceil(log2(n / L) + 1) - 1): 1 up to L, 3 up to 2 L, 7 up to 4 L, and so on.
    Report 2.5 names the method; the formula is from the released code. The power of two is found by
    comparisons, because log2 in float32 is not exact at powers of two.

    Args:
      length_B: int32, number of tokens in each sequence, without padding.

    Returns:
      Alpha, float32, in the shape of length_B.
    """
    doublings = jnp.arange(32, dtype=jnp.int32)
    edges = jnp.float32(context_length) * jnp.exp2(doublings.astype(jnp.float32))  # L, 2L, 4L, ...
    passed = jnp.sum(
        length_B[..., None].astype(jnp.float32) > edges.reshape((1,) * length_B.ndim + (-1,)),
        axis=-1,
    )
    return jnp.maximum(jnp.exp2(passed.astype(jnp.float32) + 1.0) - 1.0, 1.0)


def model_table(
    positions_BT: Array, config: ModelConfig, alpha_B: Array | None
) -> tuple[Array, Array]:
    """Returns rotary_table with a model's settings."""
    return rotary_table(
        positions_BT,
        head_size=config.head_dim,
        base=config.rope_base,
        alpha_B=alpha_B,
        scaling=config.variant.rope_scaling,
    )


def rotary_table(
    positions_BT: Array,
    *,
    head_size: int,
    base: float,
    alpha_B: Array | None = None,
    scaling: RopeScaling | None = None,
) -> tuple[Array, Array]:
    """Returns cos and sin, float32 [B, T, H / 2], of the angles position * base'^(-2 i / H).

    base' = base * alpha^(H / (H - 2)), with one alpha per sequence (report 2.5).

    Args:
      alpha_B: NTK's alpha; None: 1.
      scaling: also multiplies the frequencies, and cos and sin; None: neither.
    """
    half = head_size // 2
    exponent = jnp.arange(half, dtype=jnp.float32) * jnp.float32(-2.0 / head_size)
    if alpha_B is None:
        inverse = jnp.power(jnp.float32(base), exponent).reshape(1, 1, half)
    else:
        base_B = jnp.float32(base) * jnp.power(alpha_B, jnp.float32(head_size / (head_size - 2)))
        inverse = jnp.power(base_B[:, None, None], exponent.reshape(1, 1, half))
    if scaling is None or scaling.kind == "none":
        angles = positions_BT.astype(jnp.float32)[:, :, None] * inverse
        return jnp.cos(angles), jnp.sin(angles)
    inverse = inverse * frequency_factors(scaling, head_size=head_size, base=base)[None, None]
    angles = positions_BT.astype(jnp.float32)[:, :, None] * inverse
    size = jnp.float32(attention_factor(scaling))
    return jnp.cos(angles) * size, jnp.sin(angles) * size


def rotate(x_BTNH: Array, table: tuple[Array, Array]) -> Array:
    """Rotates the pairs (x[i], x[i + H/2]) by the table's angles in float32; keeps x's dtype."""
    cos, sin = (t[:, :, None, :] for t in table)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def logn_scale(positions_BT: Array, context_length: int) -> Array:
    """Returns the LogN factor of each query, max(1, log_L(position + 1)), float32 [B, T].

    Report 2.5 mentions query and value. The released code scales only the query, with this formula.
    """
    one_based = positions_BT.astype(jnp.float32) + 1.0
    return jnp.maximum(jnp.log(one_based) / jnp.log(jnp.float32(context_length)), 1.0)
