"""Group relative policy optimization: rewards that a program checks, no value model.

Not in the report: an alternative to its PPO (3.2.2) for tasks whose answers can be checked. Shao et
al. 2024. Each step samples a group of completions per prompt. The advantage of a completion is its
reward minus the mean of its group, divided by the group's standard deviation; groups of equal
rewards have none (rollout/frac_reward_zero_std). Policy and reference start from the SFT weights.
The rollout, the clip and the strength of the KL penalty are those of experiments.ppo.

Laptop, minutes, after experiments.quickstart:
    Q=runs/quickstart
    python -m experiments.grpo --recipe=smoke --init_from=$Q/sft --run_dir=runs/grpo_smoke \\
        --data.prompts=$Q/questions/sums/prompts.jsonl \\
        --reward_functions=qwen_jax.align.rewards:arithmetic
Pod:
    python -m launch.tpu_pod --name=grpo --zone=ZONE --type=v5p-64 -- grpo \\
        --init_from=runs/chat --data.prompts=gsm8k.jsonl --reward_functions=my_rewards:gsm8k \\
        --train.micro_batches=2 --run_dir=runs/grpo
Adapters on one GPU, as in experiments.sft:
    ... --lora.rank=16 --optimizer.peak_learning_rate=1e-4

A reward function takes lists of prompts and completions (texts), and columns of the prompts' rows
by name, and returns a number for each completion: docs/guides/alignment.md. Prompts are
conversations (without their last assistant turn) or objects with a "prompt".

The KL penalty is a term of the loss, the estimate k3 per token, as in the paper and TRL; in PPO it
is part of the reward. The loss is the mean over the tokens of a batch (TRL's dapo, as in PPO);
--grpo.loss_type has others. Several updates per rollout: --grpo.epochs, --grpo.minibatches.

Expected results: at 2.6M parameters, 1,920 samples change the accuracy on held-out sums no more
than the seed does, with GRPO as with PPO (benchmarks/results/grpo.md). Larger runs have not been
measured.
"""

import dataclasses

from qwen_jax.align.grpo.config import GRPOConfig
from qwen_jax.align.grpo.train import train_grpo
from qwen_jax.align.ppo_config import PromptData
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
    """Settings of a GRPO run. train.batch_size counts completions: prompts x num_generations."""

    train: TrainConfig
    init_from: str = option(
        "", "folder of the SFT model: initial policy and reference", kind="stored"
    )
    reward_functions: tuple[str, ...] = option(
        (), "module:function of each reward function; their rewards are added"
    )
    tokenizer: str | None = option(
        None, "folder or file; None: the one in the folder of --init_from"
    )
    data: PromptData = PromptData()
    grpo: GRPOConfig = GRPOConfig()
    model: ModelOverrides = ModelOverrides()  # changes to the model of init_from
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters; off if rank is None
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option(
        "runs/grpo", "run folder for checkpoints, metrics and the report page", kind="stored"
    )
    restart_from_scratch: bool = option(
        False, "move the files of an earlier run in run_dir to before-N/ and begin again, once"
    )
    allow_changes: bool = option(
        False, "resume with another learning rate, number of steps, ... (docs/guides/resuming.md)"
    )


RECIPE = Config(
    grpo=GRPOConfig(
        num_generations=8,  # ours: TRL's default
        beta=0.04,  # ours: as in the paper; the report's KL coefficient of PPO has the same value
        epsilon=0.2,  # ours: as in PPO, and TRL's default
        top_p=0.9,  # ours: as in PPO (report 3.2.2)
    ),
    model=ModelOverrides(remat="dots"),  # ours: saves matmul outputs, recomputes the rest
    optimizer=OptimizerConfig(
        peak_learning_rate=1e-6,  # ours: as in PPO (report 3.2.2), in the paper, and in TRL
        schedule="constant",  # ours: as in PPO
        warmup_steps=0,  # ours: as in PPO
        beta1=0.9,  # ours: as everywhere in the report
        beta2=0.95,  # ours: as everywhere in the report
        epsilon=1e-8,  # ours: as everywhere in the report
        weight_decay=0.0,  # ours: as in PPO
        clip_norm=1.0,  # ours: as in PPO
    ),
    train=TrainConfig(
        num_steps=1000,  # ours: as in PPO
        batch_size=128,  # ours: as in PPO; 16 prompts
        log_every=1,  # ours
        eval_every=None,
        save_every=50,  # ours
    ),
)
SMOKE = dataclasses.replace(
    RECIPE,
    data=PromptData(max_prompt_tokens=64),
    grpo=dataclasses.replace(RECIPE.grpo, num_generations=4, max_new_tokens=8),
    model=ModelOverrides(compute_dtype="float32"),
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=1e-4),
    train=TrainConfig(num_steps=6, batch_size=8, eval_every=None, save_every=3),
    run_dir="runs/grpo_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}


def main(config: Config) -> None:
    """Trains the policy. On a signal, saves a checkpoint and exits."""
    if not config.data.prompts:
        raise ConfigError("no prompts are set.", "--data.prompts", "pass .json or .jsonl files.")
    if not config.reward_functions:
        raise ConfigError(
            "no reward is configured.",
            "--reward_functions",
            "set a reward function, such as qwen_jax.align.rewards:arithmetic; a reward model "
            "needs experiments.ppo.",
        )
    started, tokenizer = start(config)
    with exit_on_signal(), report_at_end(config.run_dir, flags.log):
        train_grpo(started, tokenizer, log=flags.log)


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
