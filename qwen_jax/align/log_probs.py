"""Log-probabilities of given tokens, from the untruncated softmax in float32.

Shapes: B sequences, T positions, R positions per window.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.lm_loss import log_likelihoods
from qwen_jax.model.transformer import default_positions, head_matrix, hidden_states
from qwen_jax.types import Array, Params


class Window(NamedTuple):
    """`size` consecutive positions per sequence; the first position differs per sequence."""

    first_B: Array  # int32; a window past the end of its sequence is shifted back to fit
    size: int


def token_log_probs(
    params: Params,
    tokens_BT: Array,
    targets_BT: Array,
    segment_ids_BT: Array,
    *,
    config: ModelConfig,
    temperature: float = 1.0,
    window: Window | None = None,
    dropout_key: Array | None = None,
) -> tuple[Array, Array]:
    """Returns log p(target) and the entropy of its distribution, float32 [B, T] each.

    Logits are divided by `temperature` first, as in the sampler. They are materialized for one
    chunk of tokens at a time and recomputed in the backward pass (model/lm_loss.py).

    Args:
      window: the positions for which logits are computed; both results are 0 elsewhere. None: all
        positions.
    """
    x_BTD = hidden_states(
        params,
        tokens_BT,
        default_positions(tokens_BT, segment_ids_BT),
        config=config,
        segment_ids=segment_ids_BT,
        dropout_key=dropout_key,
    )
    if window is None:
        return log_likelihoods(x_BTD, head_matrix(params), targets_BT, temperature)
    in_window = log_likelihoods(
        gather_window(x_BTD, window),
        head_matrix(params),
        gather_window(targets_BT, window),
        temperature,
    )
    return tuple(scatter_window(x, window, targets_BT.shape[1]) for x in in_window)


def gather_window(x: Array, window: Window) -> Array:
    """Returns the window of each sequence: [B, T, ...] -> [B, R, ...]."""

    def one(x, first):
        return jax.lax.dynamic_slice_in_dim(x, first, window.size)

    return jax.vmap(one)(x, window.first_B)


def scatter_window(x_BR: Array, window: Window, T: int) -> Array:
    """Inverse of `gather_window`, with 0 outside the window: [B, R] -> [B, T]."""

    def one(x_R, first):
        return jax.lax.dynamic_update_slice_in_dim(jnp.zeros((T,), x_R.dtype), x_R, first, 0)

    return jax.vmap(one)(x_BR, window.first_B)
