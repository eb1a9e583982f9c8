"""The objective of pretraining and SFT: masked next-token cross-entropy. Report: 2.4, 3.1.

B batch, T positions, D model, V vocabulary.
"""

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.layers import unembed
from qwen_jax.model.transformer import head_matrix, hidden_states
from qwen_jax.types import Array, Batch, Params, Sums


def make_objective(config: ModelConfig, *, z_loss: float | None = None, training: bool = True):
    """objective(params, batch, key) -> Sums.

    loss = sum over tokens of weight * (-log p(target) + z_loss * log(Z)^2), with Z the softmax's
    denominator. The extras hold the cross-entropy without z_loss and the count of right guesses.
    `training=False` turns dropout off; NTK and LogN are off in both, as in the report.
    """

    def objective(params: Params, batch: Batch, key: Array | None) -> Sums:
        x_BTD = hidden_states(params, batch.tokens, batch.positions, config=config,
                              segment_ids=batch.segment_ids,
                              dropout_key=key if training else None)
        logits_BTV = unembed(x_BTD, head_matrix(params))
        nll_BT, log_z_BT = cross_entropy(logits_BTV, batch.targets)
        weights_BT = batch.loss_weights
        cross_entropy_sum = jnp.sum(weights_BT * nll_BT)
        loss_sum = cross_entropy_sum
        if z_loss is not None:
            loss_sum += jnp.float32(z_loss) * jnp.sum(weights_BT * jnp.square(log_z_BT))
        return Sums(loss_sum=loss_sum, weight_sum=jnp.sum(weights_BT),
                    extras={"cross_entropy": cross_entropy_sum})

    return objective


@jax.custom_vjp
def cross_entropy(logits_BTV: Array, targets_BT: Array) -> tuple[Array, Array]:
    """-log softmax(logits)[target] and log of the softmax's denominator, both float32 [B, T].

    The gradient is written by hand so that it is one fused pass over the logits, with no scatter.
    """
    return _cross_entropy_forward(logits_BTV, targets_BT)[0]


def _is_target(logits_BTV: Array, targets_BT: Array) -> Array:
    word = jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)
    return word[None, None, :] == targets_BT[:, :, None]


def _cross_entropy_forward(logits_BTV, targets_BT):
    top = jnp.max(logits_BTV, axis=-1)
    log_z = jnp.log(jnp.sum(jnp.exp(logits_BTV - top[:, :, None]), axis=-1)) + top
    chosen = jnp.take_along_axis(logits_BTV, targets_BT[:, :, None], axis=-1)[:, :, 0]
    return (log_z - chosen, log_z), (logits_BTV, targets_BT, log_z)


def _cross_entropy_backward(residuals, cotangents):
    logits_BTV, targets_BT, log_z = residuals
    d_nll, d_log_z = cotangents
    softmax = jnp.exp(logits_BTV - log_z[:, :, None])
    target = _is_target(logits_BTV, targets_BT)
    grad = softmax * (d_nll + d_log_z)[:, :, None] - jnp.where(target, d_nll[:, :, None], 0.0)
    return grad, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
