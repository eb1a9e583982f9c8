"""The Hopper back end with the same bits in every run: a named alternative for debugging a run.

Its backward pass takes two kernels, and seven matrix products where hopper's takes five.
"""

from qwen_jax.kernels.hopper.backend import PLATFORM, refuse
from qwen_jax.kernels.hopper.backend import deterministic_attention as attention

__all__ = ["PLATFORM", "attention", "refuse"]
