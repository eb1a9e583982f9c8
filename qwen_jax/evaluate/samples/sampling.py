"""How completions of a benchmark are sampled: greedily, or several of each question for pass@k.

Chat tasks may set variables of the chat template, such as Qwen3's enable_thinking.

Chen et al. 2021 sample at temperature 0.2 for pass@1 and 0.8 for pass@100, with top_p 0.95. The
report's scores are of greedy completions, one of each question.
"""

import dataclasses
import hashlib
from typing import Any

from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import ONE_OR_MORE, SEED, ZERO_OR_MORE, Checked, Range
from qwen_jax.tokenizer.template.tokens import VARIABLES_HELP, parse_variables

TEMPERATURE, TOP_P = 0.8, 0.95  # Chen et al. 2021, section 3.3


@dataclasses.dataclass(frozen=True)
class Sampling(Checked, where="--{}"):
    """How many completions of each question are sampled, and how.

    Raises:
      ConfigError: samples of a question would all be equal, or a setting has no effect.
    """

    samples: int = option(
        1,
        "completions of each question; with several, the score is pass@1, and pass@k for k of 10, "
        "100 and this number is estimated too",
        ONE_OR_MORE,
    )
    temperature: float | None = option(
        None, "sampling temperature; None: 0 (greedy) for one sample, 0.8 for several", ZERO_OR_MORE
    )
    top_p: float | None = option(
        None,
        "nucleus sampling: probability mass to sample from; None: 0.95 where the temperature is "
        "not 0",
        Range(above=0, at_most=1),
    )
    seed: int = option(0, "random seed of the samples", SEED)
    chat_template_kwargs: str | None = option(None, f"of chat tasks: {VARIABLES_HELP}", kind="text")

    def __post_init__(self):
        super().__post_init__()
        _ = self.variables  # they are checked
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"at temperature 0 all {self.samples} samples of a question are equal.",
                "--samples, --temperature",
                "leave out --samples, or use a temperature above 0.",
            )
        unused = [name for name in ("top_p", "seed") if getattr(self, name)]
        if self.is_greedy and unused:
            raise ConfigError(
                f"{unused[0]} has no effect on greedy completions.",
                f"--{unused[0]}",
                "leave it out, or set --temperature or --samples.",
            )

    @property
    def is_greedy(self) -> bool:
        return self.settings["temperature"] == 0

    @property
    def settings(self) -> dict[str, Any]:
        """Temperature and top_p, as a server and SamplingParams take them."""
        temperature = self.temperature
        if temperature is None:
            temperature = TEMPERATURE if self.samples > 1 else 0.0
        top_p = self.top_p or (TOP_P if temperature else 1.0)
        return {"temperature": temperature, "top_p": top_p}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the chat template."""
        return parse_variables(self.chat_template_kwargs, "--chat_template_kwargs")

    def seed_of(self, task: str, question: str, sample: int) -> int:
        """Returns the seed of one completion, which nothing else of the evaluation changes."""
        text = f"{self.seed}\0{task}\0{question}\0{sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def record(self) -> dict[str, Any]:
        """What determines the completions, for the results; nothing of the usual, greedy ones."""
        found = {"chat_template_kwargs": self.variables} if self.variables else {}
        if self.is_greedy:
            return found
        return found | {"sampling": {"samples": self.samples, **self.settings, "seed": self.seed}}


GREEDY = Sampling()
