"""Log-probabilities of given tokens, from the untruncated softmax in float32, chunk by chunk.

B batch, T positions, R positions that are asked for, C of a chunk, D model, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.layers import unembed
from qwen_jax.model.transformer import default_positions, head_matrix, hidden_states
from qwen_jax.types import Array, Params

_CHUNK_BYTES = 128 * 2**20  # of float32 logits that are alive at once


class Window(NamedTuple):
    """`size` positions of each row: the same number, each row from a place of its own."""

    first_B: Array  # int32; a window that would leave its row ends where the row does
    size: int


def token_log_probs(params: Params, tokens_BT: Array, targets_BT: Array, segment_ids_BT: Array, *,
                    config: ModelConfig, temperature: float = 1.0, window: Window | None = None,
                    dropout_key: Array | None = None) -> tuple[Array, Array]:
    """log p(target) and the entropy of the distribution it is from, float32 [B, T] each.

    Logits are divided by `temperature` first, as the sampler does. They exist for a few positions at
    a time, and are computed again in the backward pass.

    Args:
      window: the positions that are asked for; logits of others are not computed, and both results
        are 0 there. None: all.
    """
    x_BTD = hidden_states(params, tokens_BT, default_positions(tokens_BT, segment_ids_BT),
                          config=config, segment_ids=segment_ids_BT, dropout_key=dropout_key)
    if window is None:
        return _of_positions(x_BTD, head_matrix(params), targets_BT, temperature)
    found = _of_positions(cut_out(x_BTD, window), head_matrix(params), cut_out(targets_BT, window),
                          temperature)
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


def _of_positions(x_BRD: Array, head_DV: Array, targets_BR: Array, temperature: float
                  ) -> tuple[Array, Array]:
    """token_log_probs of normed hidden states: [B, R] each."""
    B, R = targets_BR.shape
    pieces = _pieces(R, B * head_DV.shape[1] * 4)

    @jax.checkpoint
    def piece(_, xs):
        x_BCD, targets_BC = xs
        logits_BCV = unembed(x_BCD, head_DV) / jnp.float32(temperature)
        return None, _of_logits(logits_BCV, targets_BC)

    def cut(x):  # [B, R, ...] -> [pieces, B, R / pieces, ...]
        return jnp.moveaxis(x.reshape(B, pieces, R // pieces, *x.shape[2:]), 1, 0)

    _, found = jax.lax.scan(piece, None, (cut(x_BRD), cut(targets_BR)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(B, R) for x in found)


def _of_logits(logits_BCV: Array, targets_BC: Array) -> tuple[Array, Array]:
    """log softmax at the target, and the softmax's entropy: [B, C] each.

    With l = logits - max and Z = sum exp(l) they are l[target] - log Z and log Z - sum exp(l) l / Z:
    one exponential for each logit. The entropy is for the log, and no gradient comes from it.
    """
    l_BCV = logits_BCV - jax.lax.stop_gradient(jnp.max(logits_BCV, axis=-1, keepdims=True))
    powers_BCV = jnp.exp(l_BCV)
    total_BC = jnp.sum(powers_BCV, axis=-1)
    log_total_BC = jnp.log(total_BC)
    chosen_BC = jnp.take_along_axis(l_BCV, targets_BC[:, :, None], axis=-1)[:, :, 0] - log_total_BC
    entropy_BC = log_total_BC - jnp.sum(powers_BCV * l_BCV, axis=-1) / total_BC
    return chosen_BC, jax.lax.stop_gradient(entropy_BC)


def _pieces(R: int, bytes_per_position: int) -> int:
    """The least divisor of R that keeps a piece's logits within the limit."""
    wanted = min(R, -(-R * bytes_per_position // _CHUNK_BYTES))
    return next(n for n in range(wanted, R + 1) if R % n == 0)
