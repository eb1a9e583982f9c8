"""Log-probabilities of given tokens, from the untruncated softmax in float32, chunk by chunk.

B batch, T positions, D model, V vocabulary.
"""

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.layers import unembed
from qwen_jax.model.transformer import default_positions, head_matrix, hidden_states
from qwen_jax.types import Array, Params

_CHUNK_BYTES = 128 * 2**20  # of float32 logits that are alive at once


def token_log_probs(params: Params, tokens_BT: Array, targets_BT: Array, segment_ids_BT: Array, *,
                    config: ModelConfig, temperature: float = 1.0,
                    dropout_key: Array | None = None) -> tuple[Array, Array]:
    """log p(target) and the entropy of the distribution it is from, float32 [B, T] each.

    Logits are divided by `temperature` first, as the sampler does. They exist for a few positions at
    a time, and are computed again in the backward pass.
    """
    B, T = tokens_BT.shape
    x_BTD = hidden_states(params, tokens_BT, default_positions(tokens_BT, segment_ids_BT),
                          config=config, segment_ids=segment_ids_BT, dropout_key=dropout_key)
    head_DV = head_matrix(params)
    pieces = _pieces(T, B * config.vocab_size * 4)

    @jax.checkpoint
    def piece(_, xs):
        x_BCD, targets_BC = xs
        logits_BCV = unembed(x_BCD, head_DV) / jnp.float32(temperature)
        log_p_BCV = jax.nn.log_softmax(logits_BCV, axis=-1)
        chosen = jnp.take_along_axis(log_p_BCV, targets_BC[:, :, None], axis=-1)[:, :, 0]
        entropy = -jnp.sum(jnp.exp(log_p_BCV) * log_p_BCV, axis=-1)
        return None, (chosen, entropy)

    def cut(x):  # [B, T, ...] -> [pieces, B, T / pieces, ...]
        return jnp.moveaxis(x.reshape(B, pieces, T // pieces, *x.shape[2:]), 1, 0)

    _, found = jax.lax.scan(piece, None, (cut(x_BTD), cut(targets_BT)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(B, T) for x in found)


def _pieces(T: int, bytes_per_position: int) -> int:
    """The least divisor of T that keeps a piece's logits within the limit."""
    wanted = min(T, -(-T * bytes_per_position // _CHUNK_BYTES))
    return next(n for n in range(wanted, T + 1) if T % n == 0)
