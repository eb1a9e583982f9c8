"""In-loop evaluation on held-out text: loss, perplexity and bits per byte. Report: 2.5 (base)."""

import math
from collections.abc import Callable, Iterable

import jax

from qwen_jax.train.step import Objective
from qwen_jax.types import Batch, Params, Sums


def make_evaluator(objective: Objective, put: Callable[[Batch], Batch]):
    """evaluate(params, batches, bytes_per_token) -> dict of loss, perplexity, bits_per_byte.

    Args:
      objective: with dropout off.
      put: places a numpy batch on the mesh.
    """
    score = jax.jit(lambda params, batch: objective(params, batch, None))

    def evaluate(params: Params, batches: Iterable[Batch], *,
                 bytes_per_token: float) -> dict[str, float]:
        loss = weight = 0.0
        for batch in batches:
            sums: Sums = score(params, put(batch))
            loss += float(sums.extras["cross_entropy"])
            weight += float(sums.weight_sum)
        mean = loss / weight
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0)),
                "bits_per_byte": mean / math.log(2) / bytes_per_token}

    return evaluate
