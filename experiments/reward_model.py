"""The reward model: preference model pretraining (PMP), then fine-tuning. Report: 3.2.1, Table 4.

Both stages have the same objective and data format. PMP starts from a language model and trains on
a large set of comparisons. Fine-tuning starts from PMP and trains on a small set of higher quality.

Laptop, a minute, from the smoke run of experiments.sft:
    python -m experiments.reward_model --recipe=smoke --init_from=runs/sft_smoke \\
        --data.pairs=a.json --data.eval_pairs=held_out.json
Pod, twice:
    python -m launch.tpu_pod --name=pmp --zone=ZONE --type=v5p-64 -- reward_model \\
        --init_from=runs/base --run_dir=runs/pmp --data.pairs=large.jsonl.gz \\
        --data.eval_pairs=held_out.json
    ... --init_from=runs/pmp --run_dir=runs/reward --data.pairs=small.json
Adapters on one GPU, as in experiments.sft; the score head (pooling layer) is fully trained:
    ... --lora.rank=16 --optimizer.peak_learning_rate=3e-4

Formats: HH (chosen, rejected dialogues), DPO-style (conversations or prompt; chosen, rejected),
SHP. The architecture comes from --init_from; any size works.

Hardware and hours: 1,000 steps take 11 chip hours for 7B on v5p-64 and 7 for 1.8B on v5e-16. These
are estimates (benchmarks/results/plan.md): no full size has run on this hardware yet.
Expect, in percent of held-out pairs (report Table 4, PMP / after fine-tuning): Qwen helpful-base
62.68 / 74.78, helpful-online 61.62 / 69.71, Anthropic helpful-base 76.52 / 73.98. A model of 4.9M
parameters gets 61.5 on HH (benchmarks/results/reward_model.md).
"""

import dataclasses

from qwen_jax.align.pair_rows import PairData, PairTrainConfig, read_pair_rows
from qwen_jax.align.train_reward_model import train_reward_model
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import start
from qwen_jax.ranges import Checked
from qwen_jax.report import report_at_end
from qwen_jax.train.resilience.exit import exit_on_signal
from qwen_jax.train.supervised_examples import for_epochs


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a PMP or fine-tuning run."""

    train: TrainConfig
    init_from: str = option(
        "",
        "initial weights: for PMP a language model's folder, for fine-tuning PMP's run folder",
        kind="stored",
    )
    tokenizer: str | None = option(
        None, "folder or file; None: the one in the folder of --init_from"
    )
    data: PairData = PairData()
    model: ModelOverrides = ModelOverrides()  # changes to the model of init_from
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters of the trunk; off if rank is None
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option(
        "runs/reward", "run folder for checkpoints, metrics and the report page", kind="stored"
    )
    restart_from_scratch: bool = option(
        False, "move the files of an earlier run in run_dir to before-N/ and begin again, once"
    )
    allow_changes: bool = option(
        False, "resume with another learning rate, number of steps, ... (docs/guides/resuming.md)"
    )


RECIPE = Config(
    data=PairData(epochs=1.0, context_length=2048),  # report 3.2.1
    model=ModelOverrides(remat="dots"),  # ours: saves matmul outputs, recomputes the rest
    optimizer=OptimizerConfig(
        peak_learning_rate=3e-6,  # report 3.2.1
        schedule="constant",  # report 3.2.1
        warmup_steps=0,  # report 3.2.1
        beta1=0.9,  # ours: as everywhere in the report
        beta2=0.95,  # ours: as everywhere in the report
        epsilon=1e-8,  # ours: as everywhere in the report
        weight_decay=0.1,  # ours: as in 3.1.2
        clip_norm=1.0,  # ours: as in 3.1.2
    ),
    train=PairTrainConfig(
        batch_size=64,  # report 3.2.1
        log_every=10,  # ours
        eval_every=500,  # ours
        save_every=500,  # ours
    ),
)
SMOKE = dataclasses.replace(
    RECIPE,
    data=PairData(epochs=None),
    model=ModelOverrides(compute_dtype="float32"),
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=2e-3),
    train=PairTrainConfig(
        num_steps=30, batch_size=8, log_every=10, eval_every=15, save_every=15, eval_batches=4
    ),
    run_dir="runs/reward_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}
RECIPES |= dict.fromkeys(("1.8b", "7b", "14b"), "default")  # former names; init_from sets the size


def main(config: Config) -> None:
    """Trains the reward model and prints a line of Table 4. On a signal, saves and exits."""
    if not config.data.pairs:
        raise ConfigError(
            "no pairs are set.",
            "--data.pairs",
            "pass .json or .jsonl files; --help lists the formats.",
        )
    started, tokenizer = start(config, config.data.context_length)
    rows = read_pair_rows(config.data.pairs, started, tokenizer, flags.log)
    with exit_on_signal(), report_at_end(config.run_dir, flags.log):
        train_reward_model(
            for_epochs(started, len(rows), flags.log), rows, tokenizer, log=flags.log
        )


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
