"""Direct preference optimization: preference pairs without a reward model (Rafailov et al. 2023).

The reference model's log-probabilities are constant. They are computed once before training and
stored with the pairs, so only one model is in memory during training.

Shapes: B pairs, T positions.
"""

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from qwen_jax.align.log_probs import token_log_probs
from qwen_jax.config import ModelConfig
from qwen_jax.types import Array, PairBatch, Params, Sums


class DPOBatch(PyTreeNode):
    """Pairs with the reference model's log-probabilities."""

    pairs: PairBatch
    reference_log_probs_B2: Array  # float32 [B, 2]; log p under the reference model


def response_log_probs(
    params: Params, pairs: PairBatch, *, config: ModelConfig, dropout_key: Array | None = None
) -> Array:
    """Returns log p of each response, including its <|im_end|>: float32 [B, 2]."""
    B, _, T = pairs.tokens.shape
    tokens, targets, segments, weights = (
        x.reshape(2 * B, T)
        for x in (pairs.tokens, pairs.targets, pairs.segment_ids, pairs.response_weights)
    )
    log_p_BT, _ = token_log_probs(
        params, tokens, targets, segments, config=config, dropout_key=dropout_key
    )
    return jnp.sum(log_p_BT * weights, axis=1).reshape(B, 2)


def make_objective(config: ModelConfig, *, beta: float, training: bool = True):
    """Returns objective(params, batch, key) -> Sums of -log sigmoid(r(chosen) - r(rejected)).

    r is the implicit reward of a response: beta * (log p under the policy - log p under the
    reference model).
    """

    def objective(params: Params, batch: DPOBatch, key: Array | None) -> Sums:
        policy_B2 = response_log_probs(
            params, batch.pairs, config=config, dropout_key=key if training else None
        )
        rewards_B2 = jnp.float32(beta) * (policy_B2 - batch.reference_log_probs_B2)
        margin_B, weights = rewards_B2[:, 0] - rewards_B2[:, 1], batch.pairs.weights
        return Sums(
            loss_sum=-jnp.sum(weights * jax.nn.log_sigmoid(margin_B)),
            weight_sum=jnp.sum(weights),
            extras={
                "accuracy": jnp.sum(weights * (jnp.sign(margin_B) + 1.0) / 2.0),
                "margin": jnp.sum(weights * margin_B),
                "chosen_reward": jnp.sum(weights * rewards_B2[:, 0]),
                "rejected_reward": jnp.sum(weights * rewards_B2[:, 1]),
            },
        )

    return objective
