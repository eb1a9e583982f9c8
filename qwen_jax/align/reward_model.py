"""The reward modeling objective, for PMP and fine-tuning. Report: 3.2.1.

Shapes: B pairs, T positions.
"""

import jax
import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.value_head import at_end, scores
from qwen_jax.types import Array, PairBatch, ScoringParams, Sums


def make_objective(config: ModelConfig, *, training: bool = True):
    """Returns objective(params, pairs, key) -> Sums of -log sigmoid(r(chosen) - r(rejected)).

    The reward r is read at the <|im_end|> token of the response. The extras are the accuracy (ties
    count half) and the margin, r(chosen) - r(rejected).
    """

    def objective(params: ScoringParams, pairs: PairBatch, key: Array | None) -> Sums:
        margin_B = margins(params, pairs, config=config, dropout_key=key if training else None)
        right_B = (jnp.sign(margin_B) + 1.0) / 2.0
        return Sums(
            loss_sum=-jnp.sum(pairs.weights * jax.nn.log_sigmoid(margin_B)),
            weight_sum=jnp.sum(pairs.weights),
            extras={
                "accuracy": jnp.sum(pairs.weights * right_B),
                "margin": jnp.sum(pairs.weights * margin_B),
            },
        )

    return objective


def margins(
    params: ScoringParams,
    pairs: PairBatch,
    *,
    config: ModelConfig,
    dropout_key: Array | None = None,
) -> Array:
    """Returns reward(chosen) - reward(rejected), float32 [B]."""
    B, _, T = pairs.tokens.shape
    scores_BT = scores(
        params,
        pairs.tokens.reshape(2 * B, T),
        pairs.segment_ids.reshape(2 * B, T),
        config=config,
        dropout_key=dropout_key,
    )
    rewards_B2 = at_end(scores_BT, pairs.end.reshape(2 * B)).reshape(B, 2)
    return rewards_B2[:, 0] - rewards_B2[:, 1]
