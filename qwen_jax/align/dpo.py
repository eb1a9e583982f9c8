"""Direct preference optimization: the same pairs, no reward model (Rafailov et al. 2023).

The reference's log-probabilities do not change, so they are computed once, before training, and
travel with the pairs: one model is in memory.

B pairs, T positions.
"""

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from qwen_jax.align.log_probs import token_log_probs
from qwen_jax.config import ModelConfig
from qwen_jax.types import Array, PairBatch, Params, Sums


class ComparedPairs(PyTreeNode):
    """Pairs with what the reference model thinks of them."""

    pairs: PairBatch
    reference_B2: Array  # float32 [B, 2]; log p of each answer under the reference


def answer_log_probs(
    params: Params, pairs: PairBatch, *, config: ModelConfig, dropout_key: Array | None = None
) -> Array:
    """log p of each answer, its <|im_end|> included: float32 [B, 2]."""
    B, _, T = pairs.tokens.shape
    tokens, targets, segments, weights = (
        x.reshape(2 * B, T)
        for x in (pairs.tokens, pairs.targets, pairs.segment_ids, pairs.answer_weights)
    )
    log_p_BT, _ = token_log_probs(
        params, tokens, targets, segments, config=config, dropout_key=dropout_key
    )
    return jnp.sum(log_p_BT * weights, axis=1).reshape(B, 2)


def make_objective(config: ModelConfig, *, beta: float, training: bool = True):
    """objective(params, compared, key) -> Sums of -log sigmoid(gain(chosen) - gain(rejected)).

    The gain of an answer is beta * (log p under the policy - log p under the reference): the reward
    that the policy implies.
    """

    def objective(params: Params, compared: ComparedPairs, key: Array | None) -> Sums:
        own_B2 = answer_log_probs(
            params, compared.pairs, config=config, dropout_key=key if training else None
        )
        gain_B2 = jnp.float32(beta) * (own_B2 - compared.reference_B2)
        margin_B, weights = gain_B2[:, 0] - gain_B2[:, 1], compared.pairs.weights
        return Sums(
            loss_sum=-jnp.sum(weights * jax.nn.log_sigmoid(margin_B)),
            weight_sum=jnp.sum(weights),
            extras={
                "accuracy": jnp.sum(weights * (jnp.sign(margin_B) + 1.0) / 2.0),
                "margin": jnp.sum(weights * margin_B),
                "chosen_reward": jnp.sum(weights * gain_B2[:, 0]),
                "rejected_reward": jnp.sum(weights * gain_B2[:, 1]),
            },
        )

    return objective
