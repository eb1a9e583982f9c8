"""Perplexity of a stream of tokens at a given length. Report: 2.5, Table 3.

B rows of a batch, T tokens of a row, V vocabulary.
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
    """Of every token but those that only fill up the last row."""

    nats: float  # sum of -log p(token | the tokens before it in its row)
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
    """Cuts the stream into rows of `length` and scores every token of every row.

    Row r reads tokens r T .. r T + T - 1 and predicts the next one at each place, so the same
    tokens are predicted at every length, with less or more before them. Documents run on, as in
    training. Beyond config.context_length, config.extension acts. Never are all logits in memory.

    Args:
      tokens: ids [n], such as a memory map; n - 1 is cut down to a multiple of `length`.
      length: tokens of a row.
      batch_tokens: about how many tokens are computed at once; at least one row.
      progress: told how many tokens have just been scored.

    Raises:
      DataError: fewer tokens than one row.
    """
    rows = (len(tokens) - 1) // length
    if rows < 1:
        raise DataError(
            f"{len(tokens)} tokens are fewer than one row of {length} and the token after it.",
            "perplexity(tokens, length=)",
            "use more text, or shorter rows.",
        )
    batch = min(max(1, batch_tokens // length), rows)
    score = jax.jit(functools.partial(_sum_of_nats, config=config))
    nats = 0.0
    for first in range(0, rows, batch):
        real = min(batch, rows - first)
        flat = np.zeros(batch * length + 1, np.int32)  # missing rows are zeros that weigh nothing
        piece = tokens[first * length : (first + real) * length + 1]
        flat[: len(piece)] = piece
        weights = np.repeat(np.arange(batch) < real, length).astype(np.float32)
        nats += float(
            score(params, *(a.reshape(batch, length) for a in (flat[:-1], flat[1:], weights)))
        )
        progress(real * length)
    return Perplexity(nats=nats, tokens=rows * length)


def _sum_of_nats(
    params: Params, tokens_BT: Array, targets_BT: Array, weights_BT: Array, *, config: ModelConfig
) -> Array:
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    x_BTD = hidden_states(
        params, tokens_BT, positions_BT, config=config, length_B=jnp.full((B,), T, jnp.int32)
    )
    return cross_entropy(x_BTD, head_matrix(params), targets_BT, weights_BT)[0]
