"""A DPO run: computes the reference log-probabilities of all pairs once, then trains.

The objective is in dpo.py.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from qwen_jax.align.dpo import DPOBatch, make_objective, response_log_probs
from qwen_jax.align.pair_rows import PairConfig, read_held_out
from qwen_jax.data.batches import pad_batch, stack_trees
from qwen_jax.data.chat.pairs import PairRows
from qwen_jax.model.spec import abstract, param_specs
from qwen_jax.parallel.batch_rows import on_host
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.parallel.sharding import DEFAULT_RULES, use_layout
from qwen_jax.pretrained.start import start_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.evaluation import make_means
from qwen_jax.train.supervised_examples import held_out_batches, train_on_examples
from qwen_jax.types import Params, TrainState


class DPOConfig(PairConfig, Protocol):
    """Config of a DPO run (experiments/dpo.py)."""

    @property
    def beta(self) -> float: ...


class DPOPairRows:
    """Pairs with the reference model's log-probabilities; items are unbatched DPOBatches."""

    def __init__(self, rows: PairRows, reference_log_probs: np.ndarray):
        """
        Args:
          reference_log_probs: float32 [rows, 2].
        """
        self._rows, self._reference = rows, reference_log_probs

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> DPOBatch:
        return DPOBatch(self._rows[index], self._reference[index])

    @property
    def padding(self) -> DPOBatch:
        """An empty pair of weight 0."""
        return DPOBatch(self._rows.padding, np.zeros(2, np.float32))

    def __repr__(self) -> str:
        return f"DPOPairRows({self._rows!r})"


def with_reference_log_probs(
    config: DPOConfig, all_rows: Sequence[PairRows], load: Callable[[Params], Params]
) -> list[DPOPairRows]:
    """Returns the pairs with their log-probabilities under the weights that `load` returns."""
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.micro_batches, mesh)
    with use_layout(mesh):
        # The reference weights are frozen, so they are kept in the compute dtype.
        params = load(abstract(param_specs(config.model), config.model.compute_dtype, mesh))
        log_probs = jax.jit(functools.partial(response_log_probs, config=config.model))
        sharding = NamedSharding(mesh, DEFAULT_RULES.partition_spec(("batch",)))
        size, compared = config.train.batch_size, []
        for rows in all_rows:
            chunks = []
            for first in range(0, len(rows), size):
                pairs = [rows[i] for i in range(first, min(first + size, len(rows)))]
                batch = stack_trees(pad_batch(pairs, size, rows.padding))
                chunks.append(on_host(log_probs(params, jax.device_put(batch, sharding))))
            compared.append(DPOPairRows(rows, np.concatenate(chunks)[: len(rows)]))
    return compared


def train_dpo(
    config: DPOConfig,
    rows: PairRows,
    tokenizer: Tokenizer,
    *,
    log: Callable[[str], None] = print,
) -> TrainState:
    """Trains until num_steps; train.run.run documents errors and resuming."""
    held_out = read_held_out(config, tokenizer, log)
    weights = start_of(config, once=False)  # also the reference, in every attempt
    all_rows = [rows, *held_out.values()]
    train_rows, *others = with_reference_log_probs(config, all_rows, weights["initial"])
    log(f"reference model: computed log-probabilities of {sum(map(len, all_rows)):,} pairs")
    evaluation = _evaluation(config, dict(zip(held_out, others, strict=True)), log)
    return train_on_examples(
        train_rows,
        config,
        training_stage="dpo",
        log=log,
        tokenizer=tokenizer,
        **weights,
        objective=make_objective(config.model, beta=config.beta),
        evaluate=evaluation if held_out else None,
    )


def _evaluation(config: DPOConfig, held_out: dict[str, DPOPairRows], log: Callable[[str], None]):
    """Returns the DPO evaluation: loss, accuracy and margin on each held-out file."""
    objective = make_objective(config.model, beta=config.beta, training=False)
    made = []

    def evaluate(put, done: int, state: TrainState) -> dict[str, float]:
        if not made:
            made.append(make_means(objective, put))
        metrics = {}
        for name, rows in held_out.items():
            values = made[0](state.params, held_out_batches(rows, config))
            log(
                f"step {done}  held-out {name}: loss {values['loss']:.4f}  accuracy "
                f"{100 * values['accuracy']:.1f} %  margin {values['margin']:.3f} nats"
            )
            metrics |= {f"eval/{name}/{key}": value for key, value in values.items()}
        return metrics

    return evaluate
