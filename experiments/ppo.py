"""Reinforcement learning from human feedback: PPO with four models. Report: 3.2.2.

Policy and reference start from the SFT weights, the value model from the reward model's. Each step
samples two completions per prompt, scores them, and trains on them. For the first 50 steps only the
value model is trained. A pretraining gradient (--data.pretrain.sources) limits how much the
language model forgets.

Laptop, minutes, after experiments.quickstart:
    Q=runs/quickstart
    python -m experiments.ppo --recipe=smoke --init_from=$Q/sft --run_dir=runs/ppo_smoke \\
        --data.prompts=$Q/questions/sums/prompts.jsonl \\
        --reward_functions=qwen_jax.align.rewards:arithmetic
Pod:
    python -m launch.tpu_pod --name=ppo --zone=ZONE --type=v5p-64 -- ppo \\
        --init_from=runs/chat --reward_model=runs/reward --data.prompts=prompts.jsonl \\
        --data.pretrain.sources=data/mine/shards/mine/train --train.micro_batches=2 \\
        --run_dir=runs/ppo
Adapters on one GPU, as in experiments.sft:
    ... --lora.rank=16 --optimizer.peak_learning_rate=1e-4 --value_optimizer.peak_learning_rate=5e-4

The model is that of --init_from, of any size. With adapters the SFT weights are stored once: the
policy's adapters are on top of the reference. The value model's are on top of the reward model, or
of the reference if there is none; its score head is trained in full.

A reward function takes lists of prompts and completions (texts), and columns of the prompts' rows
by name, and returns a number for each completion (docs/guides/alignment.md); it replaces the reward
model or is added to it. Prompts are conversations (without their
last assistant turn) or objects with a "prompt".

Hardware and hours, estimated from compiled updates (benchmarks/results/plan.md), not measured;
sampling is not included. 1,000 updates with pretraining data: 7B on v5p-64, 2.0 hours; 1.8B on
v5e-16 (--model.remat=block --train.micro_batches=4), 2.6 hours.
Expected results: the report has no reward curve, only human ratings of the result (3.3). At 2.6M
parameters the share of correct sums rises from 27 to 38 % in 100 steps, at a KL of 0.7 nats
(benchmarks/results/ppo_ablations.md).

Ours, not the report's: rewards are also divided by their running standard deviation, and
advantages are whitened (align/ppo.py).
"""

import dataclasses

from qwen_jax.align.ppo_config import PPOConfig, PPOData
from qwen_jax.align.train_ppo import train_ppo
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import start
from qwen_jax.ranges import Checked
from qwen_jax.report import report_at_end
from qwen_jax.train.resilience.exit import exit_on_signal


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of a PPO run. train.batch_size counts completions: prompts x samples_per_prompt."""

    train: TrainConfig
    init_from: str = option(
        "", "folder of the SFT model: initial policy and reference", kind="stored"
    )
    reward_model: str | None = option(
        None, "run folder of the reward model; None: only --reward_functions"
    )
    reward_functions: tuple[str, ...] = option(
        (), "module:function of each reward function; added to the reward model's score"
    )
    tokenizer: str | None = option(
        None, "folder or file; None: the one in the folder of --init_from"
    )
    data: PPOData = PPOData()
    ppo: PPOConfig = PPOConfig()
    model: ModelOverrides = ModelOverrides()  # changes to the model of init_from
    optimizer: OptimizerConfig = OptimizerConfig()  # the policy's optimizer
    value_optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters of policy and value model; off if rank is None
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option(
        "runs/ppo", "run folder for checkpoints, metrics and the report page", kind="stored"
    )
    restart_from_scratch: bool = option(
        False, "move the files of an earlier run in run_dir to before-N/ and begin again, once"
    )
    allow_changes: bool = option(
        False, "resume with another learning rate, number of steps, ... (docs/guides/resuming.md)"
    )


_ADAM = OptimizerConfig(
    peak_learning_rate=1e-6,  # report 3.2.2
    schedule="constant",  # ours: the report gives a single rate and no schedule
    warmup_steps=0,  # ours
    beta1=0.9,  # ours: as everywhere in the report
    beta2=0.95,  # ours: as everywhere in the report
    epsilon=1e-8,  # ours: as everywhere in the report
    weight_decay=0.0,  # ours
    clip_norm=1.0,  # ours: as in report 3.1.2
)
RECIPE = Config(
    ppo=PPOConfig(
        value_warmup_steps=50,  # report 3.2.2
        samples_per_prompt=2,  # report 3.2.2
        kl_coefficient=0.04,  # report 3.2.2
        value_clip=0.15,  # report 3.2.2
        top_p=0.9,  # report 3.2.2
        # ours: the report does not give the coefficient. The mean loss per pretraining token has
        # half the weight of the mean loss per sampled token, so the reward dominates. Not tuned.
        pretrain_coefficient=0.5,
        pretrain_ratio=4.0,  # ours: the report only says that it is far more than the PPO data
    ),
    model=ModelOverrides(remat="dots"),  # ours: saves matmul outputs, recomputes the rest
    optimizer=_ADAM,
    value_optimizer=dataclasses.replace(_ADAM, peak_learning_rate=5e-6),  # report 3.2.2
    train=TrainConfig(
        num_steps=1000,  # ours
        batch_size=128,  # ours: completions of 64 prompts
        log_every=1,  # ours
        eval_every=None,
        save_every=50,  # ours
    ),
)
SMOKE = dataclasses.replace(
    RECIPE,
    data=PPOData(max_prompt_tokens=64),
    ppo=dataclasses.replace(RECIPE.ppo, value_warmup_steps=2, max_new_tokens=8),
    model=ModelOverrides(compute_dtype="float32"),
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=1e-3),
    value_optimizer=dataclasses.replace(RECIPE.value_optimizer, peak_learning_rate=5e-3),
    train=TrainConfig(num_steps=6, batch_size=8, eval_every=None, save_every=3),
    run_dir="runs/ppo_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}
RECIPES |= dict.fromkeys(("1.8b", "7b", "14b"), "default")  # former names; init_from sets the size


def main(config: Config) -> None:
    """Trains the policy. On a signal, saves a checkpoint and exits."""
    if not config.data.prompts:
        raise ConfigError("no prompts are set.", "--data.prompts", "pass .json or .jsonl files.")
    if config.reward_model is None and not config.reward_functions:
        raise ConfigError(
            "no reward is configured.",
            "--reward_model, --reward_functions",
            "set a reward model's run folder, a reward function, or both.",
        )
    started, tokenizer = start(config)
    with exit_on_signal(), report_at_end(config.run_dir, flags.log):
        train_ppo(started, tokenizer, log=flags.log)


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
