"""Pretraining. Report: 2.4, Table 1.

Trains a language model on a weighted mixture of token shards: next-token prediction with AdamW and
a cosine schedule down to 10 % of the peak learning rate.

Make shards of your own text:
    python -m experiments.prepare_data --sources=mine=FOLDER --output=data/mine
Train on a laptop, in a minute:
    python -m experiments.pretrain --recipe=smoke --model.vocab_size=32976 \\
        --data.sources=data/mine/shards/mine/train
Train on a pod of 128 chips, with all folders on storage that the hosts share:
    python -m launch.tpu_pod --name=run --zone=ZONE --type=v5p-256 -- pretrain \\
        --recipe=7b --mesh.data=4 --run_dir=RUN --data.sources=A/train=0.7,B/train=0.3
Recipes of ours for one machine, with a learned vocabulary (--model.vocab_size): 0.6m, 2.6m, toy_8m,
25m, 50m, toy_110m and 350m.
Any size, or the config.json of any model, with the other settings of a recipe:
    ... --recipe=50m --model=qwen3-0.6b --model.vocab_size=32768
Start from released weights or the weights of another run, with a new optimizer state:
    ... --init_from=FOLDER
To resume an interrupted run, run the same command again.

Hardware and hours: 116,000 chip hours for 7B and 267,000 for 14B on v5p-256, 64,000 for 1.8B on
v5e-16. These are estimates (benchmarks/results/plan.md): no full size has run on this hardware yet.
Expected 5-shot MMLU: 44.6 (1.8B), 58.2 (7B), 66.3 (14B) after training on the report's own data,
which is not public (report 2.6, Table 2).
"""

import dataclasses
from typing import Literal

from qwen_jax import sizes
from qwen_jax.cli import flags
from qwen_jax.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    option,
)
from qwen_jax.errors import ConfigError
from qwen_jax.evaluate.in_training import TaskEvaluation, prepare
from qwen_jax.model.spec import count
from qwen_jax.pretrained.load import has_weights, model_config
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import initial_weights_of, with_local_folders
from qwen_jax.ranges import Checked
from qwen_jax.report import report_at_end
from qwen_jax.train.job import row_length
from qwen_jax.train.pretrain import check_sources, pretrain, tokenizer_of
from qwen_jax.train.resilience.exit import exit_on_signal

_MODEL = (
    "the whole model: a size of qwen_jax/sizes.py such as 50m or qwen3-0.6b, a config.json of a "
    "released layout or of a run, its folder, or a name on the Hub; --model.NAME=VALUE on top of it"
)


def with_model(recipe: "Config", name: str, where: str) -> "Config":
    """Returns a recipe with another model, computed as the recipe's, in rows of the same length.

    Raises:
      ConfigError: there is no such size or file, or the model is not implemented here.
    """
    found = model_config(name, where=where)
    model = ModelOverrides.of(recipe.model).apply(found)
    rows = row_length(recipe) if model.context_length > row_length(recipe) else None
    return dataclasses.replace(
        recipe,
        model=model,
        data=dataclasses.replace(recipe.data, context_length=rows),
        init=None if has_weights(name) else "random",
    )


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a pretraining run."""

    model: ModelConfig = dataclasses.field(metadata={"named": with_model, "help": _MODEL})
    optimizer: OptimizerConfig
    train: TrainConfig
    data: DataConfig = DataConfig()
    evaluate: TaskEvaluation = TaskEvaluation()
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option(
        "runs/pretrain", "run folder for checkpoints, metrics and the report page", kind="stored"
    )
    restart_from_scratch: bool = option(
        False, "move the files of an earlier run in run_dir to before-N/ and begin again, once"
    )
    allow_changes: bool = option(
        False, "resume with another learning rate, number of steps, ... (docs/guides/resuming.md)"
    )
    init_from: str | None = option(
        None,
        "initial weights: a released folder, a run folder, or a name on the Hub; None: random "
        "weights",
        kind="stored",
    )
    init: Literal["random"] | None = option(
        "random",
        "initial weights without --init_from. --model=FOLDER of a folder with weights needs "
        "--init=random, or --init_from",
    )


def _recipe(model: ModelConfig, tokens: float, *, micro_batches: int) -> Config:
    batch_size = 2048  # report Table 1: 4M tokens = 2048 sequences of 2048
    return Config(
        model=dataclasses.replace(
            model,
            context_length=2048,  # report 2.4
            compute_dtype="bfloat16",  # report 2.4
            remat="dots",  # ours: saves matmul outputs, recomputes the rest
        ),
        optimizer=OptimizerConfig(
            peak_learning_rate=3.0e-4,  # report Table 1
            schedule="cosine",  # report 2.4
            final_fraction=0.1,  # report 2.4
            beta1=0.9,  # report 2.4
            beta2=0.95,  # report 2.4
            epsilon=1e-8,  # report 2.4
            warmup_steps=2000,  # ours: from the technical memo of Qwen-7B; not in the report
            weight_decay=0.1,  # ours: stated in 3.1 for SFT; the memo agrees
            clip_norm=1.0,  # ours: stated in 3.1 for SFT; the memo agrees
        ),
        train=TrainConfig(
            num_steps=round(tokens / (batch_size * 2048)),  # report Table 1
            batch_size=batch_size,
            micro_batches=micro_batches,
            log_every=10,  # ours
            eval_every=1000,  # ours
            save_every=1000,  # ours
        ),
    )


# report Table 1: sizes and tokens. experiments.plan found the micro-batches for v5p-256 (128 chips;
# benchmarks/results/plan.md). On that slice, use --mesh.data=4 for 7B and --mesh.data=16 for 14B:
# each shard of a weight then has full vectors of 128. On v5e-16, use --model.remat=block
# --train.micro_batches=32 for 1.8B. The mesh depends on the slice, not on the recipe; use
# experiments.plan to find it for your slice.
RECIPES = {
    "1.8b": _recipe(sizes.QWEN_1_8B, 2.2e12, micro_batches=1),
    "7b": _recipe(sizes.QWEN_7B, 2.4e12, micro_batches=2),
    "14b": _recipe(sizes.QWEN_14B, 3.0e12, micro_batches=4),
}
_ADAM = RECIPES["1.8b"].optimizer


def _small_recipe(size: str, *, batch_size: int, peak_learning_rate: float) -> Config:
    """Returns the recipe of a size of ours, for one machine and a learned vocabulary."""
    model = sizes.by_name(size)
    # ours: 20 tokens per parameter (Hoffmann et al. 2022)
    steps = round(20 * count(model) / (batch_size * model.context_length))
    return Config(
        model=model,
        optimizer=dataclasses.replace(
            _ADAM,
            peak_learning_rate=peak_learning_rate,  # ours: smaller models take larger steps
            warmup_steps=min(2000, steps // 20),  # ours
        ),
        train=TrainConfig(num_steps=steps, batch_size=batch_size, log_every=10),
        run_dir=f"runs/{size}",
    )


RECIPES |= {
    "0.6m": _small_recipe("0.6m", batch_size=16, peak_learning_rate=5e-3),
    "2.6m": _small_recipe("2.6m", batch_size=32, peak_learning_rate=4e-3),
    "toy_8m": _small_recipe("toy_8m", batch_size=64, peak_learning_rate=3e-3),
    "25m": _small_recipe("25m", batch_size=32, peak_learning_rate=2e-3),
    "50m": _small_recipe("50m", batch_size=64, peak_learning_rate=1.5e-3),
    "toy_110m": _small_recipe("toy_110m", batch_size=128, peak_learning_rate=1e-3),
    "350m": _small_recipe("350m", batch_size=128, peak_learning_rate=6e-4),
}
RECIPES["toy_256"] = Config(  # ours: for long_context.py, a CPU version of the report's Table 3
    model=ModelConfig(  # 3.4M parameters
        vocab_size=2304,
        hidden_size=192,
        num_layers=6,
        num_heads=3,
        ffn_size=512,
        context_length=256,
        unroll_layers=6,
    ),
    optimizer=dataclasses.replace(_ADAM, peak_learning_rate=3e-3, warmup_steps=100),
    train=TrainConfig(num_steps=2000, batch_size=8, log_every=50, save_every=200),
    run_dir="runs/toy_256",
)
SMOKE = Config(
    model=dataclasses.replace(
        sizes.TINY, vocab_size=512, hidden_size=64, ffn_size=176, context_length=64
    ),
    optimizer=dataclasses.replace(_ADAM, peak_learning_rate=3e-3, warmup_steps=10),
    train=TrainConfig(
        num_steps=60, batch_size=16, log_every=10, eval_every=30, save_every=30, eval_batches=4
    ),
    run_dir="runs/smoke",
)


def main(config: Config) -> None:
    """Trains the model. A signal saves a checkpoint; exit code 0 (SIGTERM) or 130 (Ctrl-C)."""
    check_sources(config.data)
    if config.init is None and not config.init_from:
        raise ConfigError(
            "the folder of --model has weights, and it is not set whether to train them.",
            "--model, --init, --init_from",
            "set --init_from to the folder, or --init=random for random weights.",
        )
    config = with_local_folders(config)
    weights = initial_weights_of(config) if config.init_from else {}
    tokenizer = tokenizer_of(config.data)
    benchmarks = prepare(
        config.evaluate, config.model, config.train, tokenizer, config.mesh, flags.log
    )
    with exit_on_signal(), report_at_end(config.run_dir, flags.log):
        pretrain(config, tokenizer, **weights, benchmarks=benchmarks, log=flags.log)


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES | {"smoke": SMOKE})
