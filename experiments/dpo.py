"""Direct preference optimization: preference pairs, no reward model. Rafailov et al. 2023.

Not in the report: a single-stage alternative to its section 3.2. Trains on the same files as
experiments.reward_model. The policy and the reference start from the SFT weights.

Laptop, a minute, from the smoke run of experiments.sft:
    python -m experiments.dpo --recipe=smoke --init_from=runs/sft_smoke \\
        --data.pairs=a.json --data.eval_pairs=held_out.json
Pod:
    python -m launch.tpu_pod --name=dpo --zone=ZONE --type=v5p-64 -- dpo \\
        --init_from=runs/chat --run_dir=runs/dpo --data.pairs=a.json,b.jsonl.gz
Adapters on one GPU, as in experiments.sft:
    ... --lora.rank=16 --optimizer.peak_learning_rate=5e-5

The architecture comes from --init_from; any size works.

Length: one epoch over the pairs. Its duration has not been measured yet.
Expect: the first loss is log 2 = 0.6931, because the policy equals the reference. The report has no
result for DPO.
"""

import dataclasses

from qwen_jax.align.pair_rows import PairData, PairTrainConfig, read_pair_rows
from qwen_jax.align.train_dpo import train_dpo
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import start
from qwen_jax.ranges import ABOVE_ZERO, Checked
from qwen_jax.report import report_at_end
from qwen_jax.train.resilience.exit import exit_on_signal
from qwen_jax.train.supervised_examples import for_epochs


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a DPO run."""

    train: TrainConfig
    init_from: str = option(
        "", "folder of the SFT model: initial policy and reference", kind="stored"
    )
    tokenizer: str | None = option(
        None, "folder or file; None: the one in the folder of --init_from"
    )
    data: PairData = PairData()
    beta: float = option(
        0.1,
        "strength of the KL constraint; larger: the policy remains closer to the reference",
        ABOVE_ZERO,
    )
    model: ModelOverrides = ModelOverrides()  # changes to the model of init_from
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters; off if rank is None
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option(
        "runs/dpo", "run folder for checkpoints, metrics and the report page", kind="stored"
    )
    restart_from_scratch: bool = option(
        False, "move the files of an earlier run in run_dir to before-N/ and begin again, once"
    )
    allow_changes: bool = option(
        False, "resume with another learning rate, number of steps, ... (docs/guides/resuming.md)"
    )


RECIPE = Config(
    data=PairData(epochs=1.0, context_length=2048),  # ours: same as the reward model
    beta=0.1,  # ours: Rafailov et al. 2023
    model=ModelOverrides(remat="dots"),  # ours: saves matmul outputs, recomputes the rest
    optimizer=OptimizerConfig(
        peak_learning_rate=5e-7,  # ours: the paper uses 1e-6 with RMSprop
        schedule="constant",  # ours: same as the paper
        warmup_steps=150,  # ours: same as the paper
        beta1=0.9,  # ours: as everywhere in the report
        beta2=0.95,  # ours: as everywhere in the report
        epsilon=1e-8,  # ours: as everywhere in the report
        weight_decay=0.0,  # ours
        clip_norm=1.0,  # ours
    ),
    train=PairTrainConfig(
        batch_size=64,  # ours: same as the paper
        log_every=10,  # ours
        eval_every=500,  # ours
        save_every=500,  # ours
    ),
)
SMOKE = dataclasses.replace(
    RECIPE,
    data=PairData(epochs=None),
    model=ModelOverrides(compute_dtype="float32"),
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=1e-3, warmup_steps=0),
    train=PairTrainConfig(
        num_steps=30, batch_size=8, log_every=10, eval_every=15, save_every=15, eval_batches=4
    ),
    run_dir="runs/dpo_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}
RECIPES |= dict.fromkeys(("1.8b", "7b", "14b"), "default")  # former names; init_from sets the size


def main(config: Config) -> None:
    """Trains the policy. On a signal, saves a checkpoint and exits."""
    if not config.data.pairs:
        raise ConfigError(
            "no pairs are set.",
            "--data.pairs",
            "pass .json or .jsonl files; experiments.reward_model --help lists the formats.",
        )
    started, tokenizer = start(config, config.data.context_length)
    rows = read_pair_rows(config.data.pairs, started, tokenizer, flags.log)
    with exit_on_signal(), report_at_end(config.run_dir, flags.log):
        train_dpo(for_epochs(started, len(rows), flags.log), rows, tokenizer, log=flags.log)


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
