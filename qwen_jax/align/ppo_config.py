"""The settings of PPO: its hyperparameters and its data. Report: 3.2.2."""

import dataclasses

from qwen_jax.config import DataConfig, option
from qwen_jax.errors import ConfigError
from qwen_jax.inference.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters of report 3.2.2; values that it leaves open are marked as ours."""

    value_warmup_steps: int = option(
        50, "report 3.2.2: the policy is frozen, the value model trains"
    )
    samples_per_prompt: int = option(2, "report 3.2.2")
    kl_coefficient: float = option(0.04, "report 3.2.2")
    value_clip: float = option(0.15, "report 3.2.2")
    top_p: float = option(0.9, "report 3.2.2")
    temperature: float = option(1.0, "ours: of sampling and of the log-probabilities in the ratio")
    ratio_clip: float = option(0.2, "ours: Schulman et al. 2017")
    gamma: float = option(
        1.0, "ours: discount; responses are short, rewarded at their end", alias="discount"
    )
    gae_lambda: float = option(0.95, "ours: Schulman et al. 2016")
    epochs: int = option(1, "ours: passes over a rollout")
    minibatches: int = option(1, "ours: updates per pass")
    # Weight of the mean loss per pretraining token against that per sampled token. The report gives
    # no number; off unless pretraining data and a weight are set.
    pretrain_coefficient: float = option(0.0, "ours: weight of the next-token loss; 0 is off")
    pretrain_ratio: float = option(4.0, "ours: pretraining sequences per rollout sequence")
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
                    "use a value above 0; the report's value_clip is 0.15.",
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
        """The sampling settings of completions, without end token and seeds."""
        return SamplingParams.named(
            "ppo.{}",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )

    def pretrain_sequences(self, batch_size: int) -> int:
        """Returns the pretraining sequences per step of `batch_size` completions; 0: none."""
        return round(batch_size * self.pretrain_ratio) if self.pretrain_coefficient > 0 else 0


@dataclasses.dataclass(frozen=True)
class PPOData:
    """The prompts, and the data of the pretraining gradient."""

    prompts: tuple[str, ...] = option((), ".json and .jsonl files")
    max_prompt_tokens: int = option(512, "longer prompts are skipped and counted")
    pretrain: DataConfig = DataConfig()  # token shards; none: no pretraining gradient
