"""The objective of pretraining and SFT: masked next-token cross-entropy. Report: 2.4, 3.1.

B batch, T positions, D model.
"""

import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.lm_loss import cross_entropy
from qwen_jax.model.transformer import head_matrix, hidden_states
from qwen_jax.types import Array, Batch, Params, Sums


def make_objective(config: ModelConfig, *, z_loss: float | None = None, training: bool = True):
    """Returns objective(params, batch, key) -> Sums.

    loss = sum over tokens of weight * (-log p(target) + z_loss * log(Z)^2), where Z is the softmax
    denominator. The extras contain the cross-entropy without the z-loss.

    Args:
      training: False disables dropout. NTK and LogN are disabled in both cases, as in the report.
    """

    def objective(params: Params, batch: Batch, key: Array | None) -> Sums:
        x_BTD = hidden_states(
            params,
            batch.tokens,
            batch.positions,
            config=config,
            segment_ids=batch.segment_ids,
            dropout_key=key if training else None,
        )
        loss_sum, cross_entropy_sum = cross_entropy(
            x_BTD, head_matrix(params), batch.targets, batch.loss_weights, z_loss
        )
        return Sums(
            loss_sum=loss_sum,
            weight_sum=jnp.sum(batch.loss_weights),
            extras={"cross_entropy": cross_entropy_sum},
        )

    return objective
