"""A language model that scores instead of predicting: reward and value models. Report: 3.2.

B batch, T positions, D model.
"""

import dataclasses

import jax.numpy as jnp

from qwen_jax.config import ModelConfig
from qwen_jax.model.spec import param_specs
from qwen_jax.model.transformer import default_positions, hidden_states
from qwen_jax.types import Array, Params, ScoringParams, Spec


def scoring_specs(config: ModelConfig) -> ScoringParams:
    """Specs of a scoring model of the language model's size.

    The score starts at std 1 / sqrt(D + 1), so that first rewards are of size 1 and small ones.
    """
    D = config.hidden_size
    return ScoringParams(
        trunk=param_specs(config).replace(head=None),
        score=Spec((D,), ("norm",), "normal", (D + 1) ** -0.5),
    )


def from_language_model(params: Params, score_D: Array | None) -> ScoringParams:
    """A scoring model that starts as a language model; its output projection is left out.

    Args:
      score_D: None: it is somewhere else, as beside adapters.
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
    """One number per position, float32 [B, T]: hidden state times `score`, accumulated in float32.

    Causal: position t has seen tokens 0..t alone.
    """
    # The trunk has no output projection and never needs one; "tied" says so to the config.
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
    """The score at each row's end token: the pooling of the report's reward model. float32 [B]."""
    return jnp.take_along_axis(scores_BT, end_B[:, None], axis=1)[:, 0]
