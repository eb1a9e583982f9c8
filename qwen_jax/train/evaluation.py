"""In-loop evaluation on held-out text: loss, perplexity and bits per byte. Report: 2.6 (base)."""

import collections
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from qwen_jax.train.step import Objective
from qwen_jax.types import Array, Batch, Params, Sums


def make_evaluator(objective: Objective, put: Callable[[Batch], Batch]):
    """Returns evaluate(params, batches, bytes_per_token) -> loss, perplexity and bits_per_byte.

    Args:
      objective: an objective with dropout disabled.
      put: copies a NumPy batch to the mesh.
    """
    score = jax.jit(lambda params, batch: objective(params, batch, None))

    def evaluate(
        params: Params, batches: Iterable[Batch], *, bytes_per_token: float
    ) -> dict[str, float]:
        loss = weight = 0.0
        for batch in batches:
            sums: Sums = score(params, put(batch))
            loss += float(sums.extras["cross_entropy"])
            weight += float(sums.weight_sum)
        mean = loss / weight
        return {
            "loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "bits_per_byte": mean / math.log(2) / bytes_per_token,
        }

    return evaluate


def make_means(objective: Callable[[Any, Any, Array | None], Sums], put: Callable[[Any], Any]):
    """Returns means(params, batches) -> the weighted means over all batches, by name.

    These are the loss and the objective's extras. The arguments are those of make_evaluator.
    """
    score = jax.jit(lambda params, batch: objective(params, batch, None))

    def means(params: Params, batches: Iterable[Any]) -> dict[str, float]:
        totals, weight = collections.defaultdict(float), 0.0
        for batch in batches:
            sums: Sums = jax.device_get(score(params, put(batch)))
            weight += float(sums.weight_sum)
            for name, value in {"loss": sums.loss_sum, **sums.extras}.items():
                totals[name] += float(value)
        return {name: total / weight for name, total in totals.items()}

    return means
