"""The reward model: preference model pretraining (PMP), then fine-tuning. Report: 3.2.1, Table 4.

Both are the same objective on the same kind of data; PMP starts from a language model and sees the
large set, fine-tuning starts from PMP and sees the small, better one.

    python -m experiments.reward_model --init_from=runs/base --run_dir=runs/pmp \\
        --data.pairs=large.jsonl.gz --data.eval_pairs=held_out.json
    python -m experiments.reward_model --init_from=runs/pmp --run_dir=runs/reward \\
        --data.pairs=small.json --data.eval_pairs=held_out.json
    ... --lora.rank=16 --optimizer.peak_learning_rate=3e-4   # adapters, as in experiments.sft

Beside adapters the score (the pooling head) is trained in full.

Formats: HH (chosen, rejected dialogues), DPO-style (conversations or prompt; chosen, rejected),
SHP.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from experiments.pretrain import ended_by_signal
from qwen_jax.align.preference_report import measure, table
from qwen_jax.align.reward_model import make_objective
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import PairRows, read_pairs
from qwen_jax.errors import ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import is_scoring_run, scoring_start_of, start
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.supervised_rows import held_out_batches, train_on
from qwen_jax.utils.files import write_json
from qwen_jax.utils.jsonl import names_of


@dataclasses.dataclass(frozen=True)
class PairData:
    """Which comparisons."""

    pairs: tuple[str, ...] = option((), ".json and .jsonl files")
    eval_pairs: tuple[str, ...] = option((), "held out, one column of the table each")
    epochs: float | None = option(1.0, "passes over the pairs; none: train.num_steps counts")
    context_length: int | None = option(None, "tokens of a dialogue; none: the model's")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, of PMP or of fine-tuning."""

    train: TrainConfig
    init_from: str = option("", "PMP: a language model's folder; fine-tuning: PMP's run folder")
    tokenizer: str | None = option(None, "a .tiktoken file; none: the one in init_from")
    data: PairData = PairData()
    model: ModelOverrides = ModelOverrides()  # all else of the model is that of init_from
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters beside the trunk; off without a rank
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option("runs/reward", "checkpoints, metrics and the report page")


RECIPE = Config(
    data=PairData(epochs=1.0, context_length=2048),  # report 3.2.1
    model=ModelOverrides(remat="dots"),  # ours: keeps matrix products
    optimizer=OptimizerConfig(
        peak_learning_rate=3e-6,
        schedule="constant",
        warmup_steps=0,  # report 3.2.1
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,  # ours: as everywhere in the report
        weight_decay=0.1,
        clip_norm=1.0,
    ),  # ours: as in 3.1.2
    train=TrainConfig(
        num_steps=1,  # of data.epochs
        batch_size=64,  # report 3.2.1
        log_every=10,
        eval_every=500,
        save_every=500,
    ),
)  # ours
SMOKE = dataclasses.replace(
    RECIPE,
    data=PairData(epochs=None),
    model=ModelOverrides(compute_dtype="float32"),
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=2e-3),
    train=TrainConfig(
        num_steps=30, batch_size=8, log_every=10, eval_every=15, save_every=15, eval_batches=4
    ),
    run_dir="runs/reward_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}
RECIPES |= dict.fromkeys(("1.8b", "7b", "14b"), "default")  # former names: init_from has the size


def main(config: Config) -> None:
    """Trains, then prints Table 4's line; a signal ends it with a checkpoint."""
    if not config.data.pairs:
        raise ConfigError(
            "no pairs to learn from.",
            "--data.pairs",
            "name .json or .jsonl files; --help says which formats.",
        )
    config, tokenizer = start(config, config.data.context_length)
    rows = make_rows(config.data.pairs, config, tokenizer)
    with ended_by_signal():
        learn(for_epochs(config, len(rows)), rows, tokenizer)


def for_epochs(config, pairs: int):
    """The config with the number of steps that data.epochs passes over the pairs take."""
    if config.data.epochs is None:
        return config
    steps = max(1, round(config.data.epochs * pairs / config.train.batch_size))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=steps))


def make_rows(
    paths: tuple[str, ...],
    config: Config,
    tokenizer: Tokenizer,
    emit=flags.emit,
) -> PairRows:
    """The pairs of some files, after saying what became of the data."""
    counts = Counts()
    rows = PairRows(
        read_pairs(paths, counts),
        tokenizer,
        context_length=config.model.context_length,
        counts=counts,
    )
    emit(f"pairs: {counts}")
    return rows


def learn(config: Config, rows: PairRows, tokenizer: Tokenizer, emit=flags.emit):
    """The run itself; returns the last TrainState."""
    paths = config.data.eval_pairs
    held_out = {
        name: make_rows((path,), config, tokenizer, emit)
        for name, path in zip(names_of(paths), paths, strict=True)
    }

    def evaluate(put, done, state):
        agreements = [
            measure(
                name, state.params, held_out_batches(rows, config), config=config.model, put=put
            )
            for name, rows in held_out.items()
        ]
        emit(table([(f"step {done}", agreements)]))
        if jax.process_index() == 0:
            write_json(
                pathlib.Path(config.run_dir) / "calibration.json",
                {agreement.name: agreement.calibration() for agreement in agreements},
            )
        found = {}
        for agreement in agreements:
            found |= {
                f"eval/{agreement.name}/accuracy": agreement.accuracy,
                f"eval/{agreement.name}/margin": float(np.mean(agreement.margins)),
            }
        return found

    kind = "PMP's" if is_scoring_run(config.init_from) else "a language model's"
    emit(f"starting from {kind} weights")
    return train_on(
        rows,
        config,
        training_stage="reward_model",
        emit=emit,
        tokenizer=tokenizer,
        **scoring_start_of(config),
        objective=make_objective(config.model),
        evaluate=evaluate if held_out else None,
    )


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
