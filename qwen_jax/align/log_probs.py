"""Log-probabilities of given tokens, from the untruncated softmax in float32.

B batch, T positions, R positions that are asked for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.lm_loss import log_likelihoods
from qwen_jax.model.transformer import default_positions, head_matrix, hidden_states
from qwen_jax.types import Array, Params


class Window(NamedTuple):
    """`size` positions of each row: the same number, each row from a place of its own."""

    first_B: Array  # int32; a window that would leave its row ends where the row does
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
    """log p(target) and the entropy of the distribution it is from, float32 [B, T] each.

    Logits are divided by `temperature` first, as the sampler does. They exist for a few tokens at a
    time, and are computed again in the backward pass (model/lm_loss.py).

    Args:
      window: the positions that are asked for; logits of others are not computed, and both results
        are 0 there. None: all.
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
    found = log_likelihoods(
        cut_out(x_BTD, window), head_matrix(params), cut_out(targets_BT, window), temperature
    )
    return tuple(put_back(x, window, targets_BT.shape[1]) for x in found)


def cut_out(x: Array, window: Window) -> Array:
    """[B, T, ...] -> [B, R, ...]: the window of each row."""

    def row(x, first):
        return jax.lax.dynamic_slice_in_dim(x, first, window.size)

    return jax.vmap(row)(x, window.first_B)


def put_back(x_BR: Array, window: Window, T: int) -> Array:
    """[B, R] -> [B, T]: what `cut_out` took, where it was; 0 elsewhere."""

    def row(x_R, first):
        return jax.lax.dynamic_update_slice_in_dim(jnp.zeros((T,), x_R.dtype), x_R, first, 0)

    return jax.vmap(row)(x_BR, window.first_B)
