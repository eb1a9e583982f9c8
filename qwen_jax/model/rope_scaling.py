"""Scaled rotary positions: linear interpolation and YaRN (Peng et al. 2023), as in transformers.

Both multiply the frequencies by fixed factors, in training and at inference. YaRN also multiplies
the rotated queries and keys, by a factor on cos and sin.

H head size.
"""

import math

import numpy as np

from qwen_jax.attention_config import RopeScaling


def frequency_factors(scaling: RopeScaling, *, head_size: int, base: float) -> np.ndarray:
    """Returns the factor of each rotary frequency, float32 [H / 2], in descending order of them.

    linear: 1 / factor for all. yarn: 1 for frequencies with more than beta_fast rotations in
    original_length tokens, 1 / factor for those with fewer than beta_slow, and a linear ramp
    between the two.
    """
    half, stretched = head_size // 2, np.float32(1.0 / scaling.factor)
    if scaling.kind == "linear":
        return np.full(half, stretched)
    low, high = (
        _index_of(rotations, scaling, head_size, base)
        for rotations in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    width = 0.001 if low == high else high - low
    index = np.arange(half, dtype=np.float32)
    ramp = np.clip((index - np.float32(low)) / np.float32(width), 0.0, 1.0).astype(np.float32)
    return ramp * stretched + (1 - ramp)


def attention_factor(scaling: RopeScaling) -> float:
    """Returns the factor of cos and sin; the scores are multiplied by its square."""
    if scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale is not None and scaling.mscale_all_dim is not None:
        return _size(scaling, scaling.mscale) / _size(scaling, scaling.mscale_all_dim)
    return _size(scaling, 1.0)


def _size(scaling: RopeScaling, mscale: float) -> float:
    return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0


def _index_of(rotations: float, scaling: RopeScaling, head_size: int, base: float) -> float:
    """Returns the (real) index of the frequency that rotates so often in original_length tokens."""
    assert scaling.original_length is not None, "yarn has an original length"
    wavelength = scaling.original_length / (rotations * 2 * math.pi)
    return head_size * math.log(wavelength) / (2 * math.log(base))
