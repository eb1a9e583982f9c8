"""GRPO hyperparameters, with TRL's names where TRL has the setting."""

import dataclasses
from typing import Literal

from qwen_jax.align.ppo_config import PPOConfig
from qwen_jax.config import option
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, ZERO_OR_MORE, Checked, Range, limits_of

LossType = Literal["dapo", "grpo", "dr_grpo"]
ScaleRewards = Literal["group", "batch", "none"]


@dataclasses.dataclass(frozen=True)
class GRPOConfig(Checked, where="grpo.{}"):
    """Hyperparameters of GRPO (Shao et al. 2024). All are ours; the report has no GRPO."""

    num_generations: int = option(8, "completions sampled per prompt: the group", Range(2))
    beta: float = option(
        0.04, "weight of the KL to the reference in the loss; PPO's kl_coefficient", ZERO_OR_MORE
    )
    epsilon: float = option(0.2, "clipping range of the ratio; PPO's ratio_clip", ABOVE_ZERO)
    scale_rewards: ScaleRewards = option(
        "group",
        "divide advantages by the standard deviation of the group's rewards, of all rewards of the "
        "batch, or by nothing",
    )
    loss_type: LossType = option(
        "dapo",
        "normalization of the loss. dapo: mean over tokens; grpo: mean over responses of the mean "
        "over their tokens; dr_grpo: sum over tokens, by the maximum number of tokens",
    )
    top_p: float = option(
        0.9, "nucleus sampling: probability mass to sample from", limits_of(PPOConfig, "top_p")
    )
    temperature: float = option(
        1.0, "temperature of sampling and of the log-probabilities in the ratio", ABOVE_ZERO
    )
    epochs: int = option(1, "passes over each rollout (TRL: num_iterations)", ONE_OR_MORE)
    minibatches: int = option(1, "optimizer updates per pass over a rollout", ONE_OR_MORE)
    max_new_tokens: int = option(
        512, "maximum tokens per completion (TRL: max_completion_length)", ONE_OR_MORE
    )

    @property
    def samples_per_prompt(self) -> int:
        """The number of generations, by the name that rollouts use."""
        return self.num_generations

    @property
    def sampling(self) -> SamplingParams:
        """The sampling settings of completions, without the end token and seeds."""
        return SamplingParams.named(
            "grpo.{}",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )
