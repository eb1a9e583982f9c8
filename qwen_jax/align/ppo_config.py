"""The settings of PPO: its hyperparameters and its data. Report: 3.2.2."""

import dataclasses

from qwen_jax.config import DataConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.inference.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """The numbers of 3.2.2; those that it leaves open are marked as ours."""

    value_warmup_steps: int = option(
        50, "report 3.2.2: the policy is frozen, the value model trains"
    )
    samples_per_prompt: int = option(2, "report 3.2.2")
    kl_coefficient: float = option(0.04, "report 3.2.2")
    value_clip: float = option(0.15, "report 3.2.2")
    top_p: float = option(0.9, "report 3.2.2")
    temperature: float = option(1.0, "ours: what the log-probabilities of the ratio are from, too")
    ratio_clip: float = option(0.2, "ours: Schulman et al. 2017")
    gamma: float = option(
        1.0, "ours: discount; a response is short, its reward is at its end", alias="discount"
    )
    gae_lambda: float = option(0.95, "ours: Schulman et al. 2016")
    epochs: int = option(1, "ours: passes over a rollout")
    minibatches: int = option(1, "ours: updates in a pass")
    # Weight of the mean loss of a pretraining token against that of an action. The report gives no
    # number; off until somebody names pretraining data and a weight.
    pretrain_coefficient: float = option(0.0, "ours: weight of the next-token loss; 0 is off")
    pretrain_ratio: float = option(4.0, "ours: pretraining rows for each rollout row")
    missing_eos_penalty: float = option(
        1.0,
        "ours: subtracted from the reward of a truncated response",
        alias="no_end_penalty",
    )
    max_new_tokens: int = option(512, "ours")

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
                    "the report's value clip is 0.15.",
                )
        for name in ("gamma", "gae_lambda"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is outside (0, 1].",
                    f"ppo.{name}",
                    "use 1, or a little less.",
                )

    @property
    def sampling(self) -> SamplingParams:
        """How completions are sampled, but for their end token and their seeds."""
        return SamplingParams.named(
            "ppo.{}",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )

    def pretrain_rows(self, batch_size: int) -> int:
        """Rows of pretraining data in a step of so many completions; 0: no pretraining gradient."""
        return round(batch_size * self.pretrain_ratio) if self.pretrain_coefficient > 0 else 0


@dataclasses.dataclass(frozen=True)
class PPOData:
    """Prompts, and what the pretraining gradient reads."""

    prompts: tuple[str, ...] = option((), ".json and .jsonl files")
    max_prompt_tokens: int = option(512, "longer ones are left out, counted")
    pretrain: DataConfig = DataConfig()  # token shards; none: no pretraining gradient
