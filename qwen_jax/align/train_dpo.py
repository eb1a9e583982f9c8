"""A DPO run: what the reference thinks of every pair, computed once, then training on it.

The objective is that of dpo.py.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from qwen_jax.align.dpo import ComparedPairs, answer_log_probs, make_objective
from qwen_jax.align.pair_rows import PairConfig, read_held_out
from qwen_jax.data.batches import fill_up, stack_trees
from qwen_jax.data.chat.pairs import PairRows
from qwen_jax.model.spec import abstract, param_specs
from qwen_jax.parallel.batch_rows import on_host
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.parallel.sharding import DEFAULT_RULES, use_layout
from qwen_jax.pretrained.start import start_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.evaluation import make_means
from qwen_jax.train.supervised_rows import held_out_batches, train_on
from qwen_jax.types import Params, TrainState


class DPOConfig(PairConfig, Protocol):
    """What the config of a DPO run has (experiments/dpo.py)."""

    @property
    def beta(self) -> float: ...


class ComparedRows:
    """Pairs with the reference's log-probabilities of their answers, as rows of ComparedPairs."""

    def __init__(self, rows: PairRows, reference: np.ndarray):
        """
        Args:
          reference: float32 [rows, 2].
        """
        self._rows, self._reference = rows, reference

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> ComparedPairs:
        return ComparedPairs(self._rows[row], self._reference[row])

    @property
    def padding(self) -> ComparedPairs:
        """A pair of nothing."""
        return ComparedPairs(self._rows.padding, np.zeros(2, np.float32))

    def __repr__(self) -> str:
        return f"ComparedRows({self._rows!r})"


def compare(
    config: DPOConfig, all_rows: Sequence[PairRows], load: Callable[[Params], Params]
) -> list[ComparedRows]:
    """Rows with what the weights that `load` gives think of them, each computed once."""
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.micro_batches, mesh)
    with use_layout(mesh):
        # Weights that stand still are held in the dtype that they are used in.
        params = load(abstract(param_specs(config.model), config.model.compute_dtype, mesh))
        log_probs = jax.jit(functools.partial(answer_log_probs, config=config.model))
        by_row = NamedSharding(mesh, DEFAULT_RULES.partition_spec(("batch",)))
        size, found = config.train.batch_size, []
        for rows in all_rows:
            parts = []
            for first in range(0, len(rows), size):
                chosen = [rows[i] for i in range(first, min(first + size, len(rows)))]
                batch = stack_trees(fill_up(chosen, size, rows.padding))
                parts.append(on_host(log_probs(params, jax.device_put(batch, by_row))))
            found.append(ComparedRows(rows, np.concatenate(parts)[: len(rows)]))
    return found


def train_dpo(
    config: DPOConfig,
    rows: PairRows,
    tokenizer: Tokenizer,
    *,
    log: Callable[[str], None] = print,
) -> TrainState:
    """Trains until num_steps; see train.run.run, which says what it raises and resumes."""
    held_out = read_held_out(config, tokenizer, log)
    weights = start_of(config)
    all_rows = [rows, *held_out.values()]
    compared, *others = compare(config, all_rows, weights["initial"])
    log(f"reference: log-probabilities of {sum(map(len, all_rows)):,} pairs")
    evaluation = _evaluation(config, dict(zip(held_out, others, strict=True)), log)
    return train_on(
        compared,
        config,
        training_stage="dpo",
        log=log,
        tokenizer=tokenizer,
        **weights,
        objective=make_objective(config.model, beta=config.beta),
        evaluate=evaluation if held_out else None,
    )


def _evaluation(config: DPOConfig, held_out: dict[str, ComparedRows], log: Callable[[str], None]):
    """The `evaluate` of DPO: loss, accuracy and margin of each held-out file."""
    objective = make_objective(config.model, beta=config.beta, training=False)
    made = []

    def evaluate(put, done: int, state: TrainState) -> dict[str, float]:
        if not made:
            made.append(make_means(objective, put))
        found = {}
        for name, rows in held_out.items():
            values = made[0](state.params, held_out_batches(rows, config))
            log(
                f"step {done}  held out {name}: loss {values['loss']:.4f}  accuracy "
                f"{100 * values['accuracy']:.1f} %  margin {values['margin']:.3f}"
            )
            found |= {f"eval/{name}/{key}": value for key, value in values.items()}
        return found

    return evaluate
