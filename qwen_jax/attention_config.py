"""Settings of attention: what later models changed in it, and how positions extend.

The defaults are the attention of the report (2.3).
"""

import dataclasses
from typing import Literal

from qwen_jax.errors import ConfigError
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, ZERO_OR_MORE, Checked, Range, option, shown


@dataclasses.dataclass(frozen=True)
class ContextExtension(Checked, where="model.extension.{}"):
    """Context extension, used only at inference and beyond the training length (report 2.5)."""

    dynamic_ntk: bool = option(True, "dynamic NTK: increase the RoPE base with the sequence length")
    logn: bool = option(True, "LogN scaling: multiply each query by the log of its position")
    windows: tuple[int, ...] | None = option(
        None,
        "attention window of each layer in tokens, lowest layer first; None: full attention",
        ONE_OR_MORE,
    )


@dataclasses.dataclass(frozen=True)
class RopeScaling(Checked, where="model.variant.rope_scaling.{}"):
    """Scaled rotary positions, in training and at inference (model/rope_scaling.py).

    The fields have the meaning of `rope_parameters` in transformers.
    """

    kind: Literal["none", "linear", "yarn"] = option(
        "none",
        "scaling of rotary frequencies. linear: all divided by the factor; yarn: only low ones",
    )
    factor: float = option(
        1.0, "longest context as a multiple of that before the scaling", ABOVE_ZERO
    )
    original_length: int | None = option(
        None, "yarn: context length before the scaling, in tokens", Range(1, 10**8)
    )
    attention_factor: float | None = option(
        None, "yarn: factor of rotated queries and keys; None: 0.1 ln(factor) + 1", ABOVE_ZERO
    )
    beta_fast: float = option(
        32.0, "yarn: frequencies with more rotations in original_length keep theirs", ABOVE_ZERO
    )
    beta_slow: float = option(
        1.0, "yarn: frequencies with fewer rotations are divided by the factor", ABOVE_ZERO
    )
    mscale: float | None = option(
        None, "yarn: with mscale_all_dim, scales the logarithm in attention_factor", ABOVE_ZERO
    )
    mscale_all_dim: float | None = option(
        None, "yarn: like mscale, in the denominator of attention_factor", ABOVE_ZERO
    )
    truncate: bool = option(True, "yarn: round the bounds between the frequencies to integers")

    def __post_init__(self):
        super().__post_init__()
        if self.kind == "yarn" and self.original_length is None:
            raise ConfigError(
                "kind=yarn needs the context length before the scaling.",
                "model.variant.rope_scaling.original_length",
                "set it to the context length of the model that is extended.",
            )
        if self.beta_fast < self.beta_slow:
            raise ConfigError(
                f"beta_fast={self.beta_fast:g} is below beta_slow={self.beta_slow:g}.",
                "model.variant.rope_scaling.beta_fast",
                "use a larger value; the defaults are 32 and 1.",
            )


@dataclasses.dataclass(frozen=True)
class AttentionVariant(Checked, where="model.variant.{}"):
    """What Qwen2 and Qwen3 change in the attention of the report."""

    qkv_bias: bool = option(
        True, "bias of the query, key and value projections (Qwen to Qwen2.5; Qwen3 has none)"
    )
    qk_norm: bool = option(False, "RMSNorm of each query and key head before the rotation (Qwen3)")
    sliding_window: int | None = option(
        None,
        "tokens that a query of the sliding_layers sees, including itself; also in training",
        ONE_OR_MORE,
    )
    sliding_layers: tuple[int, ...] = option(
        (), "layers with the sliding window, lowest first, counted from 0", ZERO_OR_MORE
    )
    rope_scaling: RopeScaling = RopeScaling()

    def __post_init__(self):
        super().__post_init__()
        if (self.sliding_window is None) != (not self.sliding_layers):
            raise ConfigError(
                f"sliding_window={self.sliding_window}, but sliding_layers="
                f"{shown(self.sliding_layers)}.",
                "model.variant.sliding_window, model.variant.sliding_layers",
                "set both or neither.",
            )
        if list(self.sliding_layers) != sorted(set(self.sliding_layers)):
            raise ConfigError(
                f"sliding_layers={shown(self.sliding_layers)} is not ascending.",
                "model.variant.sliding_layers",
                "list each layer once, lowest first.",
            )

    def window(self, layer: int) -> int | None:
        """Returns the sliding window of a layer in tokens; None: full attention."""
        return self.sliding_window if layer in self.sliding_layers else None
