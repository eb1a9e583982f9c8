"""PPO hyperparameters and data settings. Report: 3.2.2."""

import dataclasses
from typing import Any, Protocol

from qwen_jax.config import DataConfig, option
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.ranges import (
    ABOVE_ZERO,
    ONE_OR_MORE,
    ZERO_OR_MORE,
    Checked,
    Range,
    limits_of,
)
from qwen_jax.tokenizer.template.tokens import VARIABLES_HELP, parse_variables


@dataclasses.dataclass(frozen=True)
class PPOConfig(Checked, where="ppo.{}"):
    """Hyperparameters of report 3.2.2; values that the report omits are marked "ours"."""

    value_warmup_steps: int = option(
        50, "first steps, which train only the value model (report 3.2.2)", ZERO_OR_MORE
    )
    samples_per_prompt: int = option(
        2, "completions sampled per prompt (report 3.2.2)", ONE_OR_MORE
    )
    kl_coefficient: float = option(0.04, "KL penalty weight (report 3.2.2)", ZERO_OR_MORE)
    value_clip: float = option(0.15, "clipping range of the value loss (report 3.2.2)", ABOVE_ZERO)
    top_p: float = option(
        0.9,
        "nucleus sampling: probability mass to sample from (report 3.2.2)",
        limits_of(SamplingParams, "top_p"),
    )
    temperature: float = option(
        1.0,
        "temperature of sampling and of the log-probabilities in the ratio (ours)",
        ABOVE_ZERO,
    )
    ratio_clip: float = option(
        0.2,
        "clipping range of the policy ratio (ours; Schulman et al. 2017)",
        ABOVE_ZERO,
    )
    gamma: float = option(
        1.0,
        "discount factor (ours; responses are short and rewarded at their end)",
        Range(above=0, at_most=1),
        alias="discount",
    )
    gae_lambda: float = option(
        0.95,
        "lambda of generalized advantage estimation (ours; Schulman et al. 2016)",
        Range(above=0, at_most=1),
    )
    epochs: int = option(1, "passes over each rollout (ours)", ONE_OR_MORE)
    minibatches: int = option(1, "optimizer updates per pass over a rollout (ours)", ONE_OR_MORE)
    # Weight of the mean loss per pretraining token relative to the mean loss per sampled token. The
    # report gives no value. Off unless pretraining data and a weight are set.
    pretrain_coefficient: float = option(
        0.0,
        "weight of the next-token loss on pretraining data (ours); 0: off",
        ZERO_OR_MORE,
    )
    pretrain_ratio: float = option(
        4.0, "pretraining sequences per rollout sequence (ours)", Range(above=0, at_most=10**6)
    )
    missing_eos_penalty: float = option(
        1.0,
        "amount subtracted from the reward of a truncated response (ours)",
        ZERO_OR_MORE,
        alias="no_end_penalty",
    )
    max_new_tokens: int = option(512, "maximum tokens per completion (ours)", ONE_OR_MORE)

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


class RolloutConfig(Protocol):
    """The settings of a rollout."""

    @property
    def samples_per_prompt(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def sampling(self) -> SamplingParams: ...


@dataclasses.dataclass(frozen=True)
class PromptData(Checked, where="data.{}"):
    """Prompts."""

    prompts: tuple[str, ...] = option((), ".json and .jsonl files of prompts")
    max_prompt_tokens: int = option(
        512,
        "maximum tokens per prompt; longer prompts are skipped and counted",
        ONE_OR_MORE,
    )
    chat_template_kwargs: str | None = option(None, VARIABLES_HELP, kind="text")

    def __post_init__(self):
        super().__post_init__()
        _ = self.variables  # they are checked

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the chat template."""
        return parse_variables(self.chat_template_kwargs, "--data.chat_template_kwargs")


@dataclasses.dataclass(frozen=True)
class PPOData(PromptData):
    """Prompts, and data for the pretraining gradient."""

    pretrain: DataConfig = DataConfig()  # token shards; none: no pretraining gradient
