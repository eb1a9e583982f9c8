"""Reward and value models: a language model with a scalar head. Report: 3.2.

B batch, T positions, D model.
"""

import dataclasses

import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.spec import param_specs
from qwen_jax.model.transformer import default_positions, hidden_states
from qwen_jax.types import Array, Params, ScoringParams, Spec


def scoring_specs(config: ModelConfig) -> ScoringParams:
    """Returns the Specs of a scoring model: a language model's trunk and a scalar head.

    The head is initialized with std 1 / sqrt(D + 1), so initial rewards are of order 1.
    """
    D = config.hidden_size
    return ScoringParams(
        trunk=param_specs(config).replace(head=None),
        score=Spec((D,), ("norm",), "normal", (D + 1) ** -0.5),
    )


def from_language_model(params: Params, score_D: Array | None) -> ScoringParams:
    """Returns a scoring model with a language model's trunk, without its output projection.

    Args:
      score_D: the head; None if it is stored elsewhere, as with adapters.
    """
    return ScoringParams(trunk=params.replace(head=None), score=score_D)


def scores(
    params: ScoringParams,
    tokens_BT: Array,
    segment_ids_BT: Array,
    *,
    config: ModelConfig,
    dropout_key: Array | None = None,
) -> Array:
    """Returns one score per position, float32 [B, T]: hidden states times `score`, in float32.

    Scores are causal: the score at position t depends only on tokens 0..t.
    """
    # The trunk has no output projection, which the config expresses as tie_embeddings.
    config = dataclasses.replace(config, tie_embeddings=True)
    x_BTD = hidden_states(
        params.trunk,
        tokens_BT,
        default_positions(tokens_BT, segment_ids_BT),
        config=config,
        segment_ids=segment_ids_BT,
        dropout_key=dropout_key,
    )
    return jnp.einsum("BTD,D->BT", x_BTD.astype(jnp.float32), params.score.astype(jnp.float32))


def at_end(scores_BT: Array, end_B: Array) -> Array:
    """Returns the score at each sequence's end token, float32 [B].

    This is how the report's reward model pools its scores.
    """
    return jnp.take_along_axis(scores_BT, end_B[:, None], axis=1)[:, 0]
