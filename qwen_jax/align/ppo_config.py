"""PPO hyperparameters and data settings. Report: 3.2.2."""

import dataclasses

from qwen_jax.config import DataConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.inference.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters of report 3.2.2; values that the report omits are marked "ours"."""

    value_warmup_steps: int = option(
        50, "first steps, which train only the value model (report 3.2.2)"
    )
    samples_per_prompt: int = option(2, "completions sampled per prompt (report 3.2.2)")
    kl_coefficient: float = option(0.04, "KL penalty weight (report 3.2.2)")
    value_clip: float = option(0.15, "clipping range of the value loss (report 3.2.2)")
    top_p: float = option(0.9, "nucleus sampling: probability mass to sample from (report 3.2.2)")
    temperature: float = option(
        1.0, "temperature of sampling and of the log-probabilities in the ratio (ours)"
    )
    ratio_clip: float = option(
        0.2, "clipping range of the policy ratio (ours; Schulman et al. 2017)"
    )
    gamma: float = option(
        1.0,
        "discount factor (ours; responses are short and rewarded at their end)",
        alias="discount",
    )
    gae_lambda: float = option(
        0.95, "lambda of generalized advantage estimation (ours; Schulman et al. 2016)"
    )
    epochs: int = option(1, "passes over each rollout (ours)")
    minibatches: int = option(1, "optimizer updates per pass over a rollout (ours)")
    # Weight of the mean loss per pretraining token relative to the mean loss per sampled token. The
    # report gives no value. Off unless pretraining data and a weight are set.
    pretrain_coefficient: float = option(
        0.0, "weight of the next-token loss on pretraining data (ours); 0: off"
    )
    pretrain_ratio: float = option(4.0, "pretraining sequences per rollout sequence (ours)")
    missing_eos_penalty: float = option(
        1.0,
        "amount subtracted from the reward of a truncated response (ours)",
        alias="no_end_penalty",
    )
    max_new_tokens: int = option(512, "maximum tokens per completion (ours)")

    def __post_init__(self):
        _ = self.sampling  # checks its fields
        for name in ("samples_per_prompt", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is below 1.", f"ppo.{name}", "use 1 or more."
                )
        for name in ("value_clip", "ratio_clip", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is not positive.",
                    f"ppo.{name}",
                    "use a value above 0 (the report's value_clip is 0.15).",
                )
        for name in ("gamma", "gae_lambda"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is outside (0, 1].",
                    f"ppo.{name}",
                    "use 1 or slightly less.",
                )

    @property
    def sampling(self) -> SamplingParams:
        """The sampling settings of completions, without the end token and seeds."""
        return SamplingParams.named(
            "ppo.{}",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )

    def pretrain_sequences(self, batch_size: int) -> int:
        """Returns the number of pretraining sequences per step of `batch_size` completions."""
        return round(batch_size * self.pretrain_ratio) if self.pretrain_coefficient > 0 else 0


@dataclasses.dataclass(frozen=True)
class PPOData:
    """Prompts, and data for the pretraining gradient."""

    prompts: tuple[str, ...] = option((), ".json and .jsonl files of prompts")
    max_prompt_tokens: int = option(
        512, "maximum tokens per prompt; longer prompts are skipped and counted"
    )
    pretrain: DataConfig = DataConfig()  # token shards; none: no pretraining gradient
