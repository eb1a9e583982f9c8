"""The deterministic Hopper backend, for debugging: bitwise equal gradients in every run.

Its backward pass has two kernels, with seven matmuls instead of five.
"""

from qwen_jax.kernels.hopper.backend import PLATFORM, refuse
from qwen_jax.kernels.hopper.backend import deterministic_attention as attention

__all__ = ["PLATFORM", "attention", "refuse"]
