"""A reward model run (PMP or fine-tuning), evaluated on held-out pairs. Report: 3.2.1.

The objective is in reward_model.py. Table 4 and the calibration are in preference_report.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qwen_jax.align.pair_rows import PairConfig, read_held_out
from qwen_jax.align.preference_report import measure, table
from qwen_jax.align.reward_model import make_objective
from qwen_jax.data.chat.pairs import PairRows
from qwen_jax.pretrained.start import is_scoring_run, scoring_start_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.attempts.staged import local
from qwen_jax.train.supervised_examples import held_out_batches, train_on_examples
from qwen_jax.types import TrainState
from qwen_jax.utils.files import write_json


def train_reward_model(
    config: PairConfig,
    rows: PairRows,
    tokenizer: Tokenizer,
    *,
    log: Callable[[str], None] = print,
) -> TrainState:
    """Trains until num_steps; train.run.run documents errors and resuming."""
    held_out = read_held_out(config, tokenizer, log)
    kind = "a PMP run" if is_scoring_run(config.init_from) else "a language model"
    log(f"starting from the weights of {kind}")
    return train_on_examples(
        rows,
        config,
        training_stage="reward_model",
        log=log,
        tokenizer=tokenizer,
        **scoring_start_of(config),
        objective=make_objective(config.model),
        evaluate=_evaluation(config, held_out, log) if held_out else None,
    )


def _evaluation(config: PairConfig, held_out: dict[str, PairRows], log: Callable[[str], None]):
    """Returns the reward model evaluation: a line of Table 4, metrics, and calibration.json.

    The accuracy is a fraction of pairs; the mean margin, r(chosen) - r(rejected), is in nats: the
    logarithm of the odds that the chosen response is preferred.
    """

    def evaluate(put, done: int, state: Any) -> dict[str, float]:
        agreements = [
            measure(
                name, state.params, held_out_batches(rows, config), config=config.model, put=put
            )
            for name, rows in held_out.items()
        ]
        log(table([(f"step {done}, accuracy", agreements)]))
        for agreement in agreements:
            log(
                f"step {done}  held-out {agreement.name}: accuracy "
                f"{100 * agreement.accuracy:.1f} %  margin {np.mean(agreement.margins):.3f} nats"
            )
        if jax.process_index() == 0:
            write_json(
                local(config.run_dir) / "calibration.json",
                {agreement.name: agreement.calibration() for agreement in agreements},
            )
        metrics = {}
        for agreement in agreements:
            metrics |= {
                f"eval/{agreement.name}/accuracy": agreement.accuracy,
                f"eval/{agreement.name}/margin": float(np.mean(agreement.margins)),
            }
        return metrics

    return evaluate
