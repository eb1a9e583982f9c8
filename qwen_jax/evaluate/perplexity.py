"""Perplexity of a token stream at a given sequence length. Report: 2.5, Table 3.

B sequences in a batch, T tokens in a sequence, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import DataError
from qwen_jax.model.lm_loss import cross_entropy
from qwen_jax.model.transformer import head_matrix, hidden_states
from qwen_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The loss of all scored tokens, without the last batch's padding."""

    nats: float  # sum of -log p(token | the tokens before it in its sequence)
    tokens: int

    @property
    def value(self) -> float:
        return math.exp(min(self.nats / self.tokens, 700.0))


def perplexity(
    params: Params,
    tokens: np.ndarray,
    *,
    config: ModelConfig,
    length: int,
    batch_tokens: int = 16384,
    progress: Callable[[int], object] = lambda tokens: None,
) -> Perplexity:
    """Splits the stream into sequences of `length` and scores every token.

    Sequence r reads tokens r T .. r T + T - 1 and predicts the next token at each position. The
    same tokens are therefore predicted at every length, with less or more context. Documents are
    concatenated, as in training. Past config.context_length, config.extension applies. The full
    logits are never in memory.

    Args:
      tokens: ids [n], such as a memory map; n - 1 is truncated to a multiple of `length`.
      length: tokens in a sequence.
      batch_tokens: approximate number of tokens in a batch, which has at least one sequence.
      progress: receives the number of tokens just scored.

    Raises:
      DataError: there are too few tokens for one sequence.
    """
    num_sequences = (len(tokens) - 1) // length
    if num_sequences < 1:
        raise DataError(
            f"{len(tokens)} tokens are too few for a sequence of {length} and the token after it.",
            "perplexity(tokens, length=)",
            "use more text, or a smaller length.",
        )
    batch = min(max(1, batch_tokens // length), num_sequences)
    score = jax.jit(functools.partial(_sum_of_nats, config=config))
    nats = 0.0
    for first in range(0, num_sequences, batch):
        real = min(batch, num_sequences - first)
        flat = np.zeros(batch * length + 1, np.int32)  # padding: zeros, weight 0
        part = tokens[first * length : (first + real) * length + 1]
        flat[: len(part)] = part
        weights = np.repeat(np.arange(batch) < real, length).astype(np.float32)
        nats += float(
            score(params, *(a.reshape(batch, length) for a in (flat[:-1], flat[1:], weights)))
        )
        progress(real * length)
    return Perplexity(nats=nats, tokens=num_sequences * length)


def _sum_of_nats(
    params: Params, tokens_BT: Array, targets_BT: Array, weights_BT: Array, *, config: ModelConfig
) -> Array:
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    x_BTD = hidden_states(
        params, tokens_BT, positions_BT, config=config, length_B=jnp.full((B,), T, jnp.int32)
    )
    return cross_entropy(x_BTD, head_matrix(params), targets_BT, weights_BT)[0]
