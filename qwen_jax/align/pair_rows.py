"""Preference pairs for the reward model and DPO: files and encoded rows."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from qwen_jax.config import ModelConfig, TrainConfig, option
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import PairRows, read_pairs
from qwen_jax.pretrained.start import StageConfig
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, Checked, limits_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.template.tokens import VARIABLES_HELP, parse_variables
from qwen_jax.train.job import row_length
from qwen_jax.utils.jsonl import unique_names


@dataclasses.dataclass(frozen=True)
class PairData(Checked, where="data.{}"):
    """Settings of the preference data."""

    pairs: tuple[str, ...] = option((), ".json and .jsonl files of preference pairs")
    eval_pairs: tuple[str, ...] = option(
        (), "held-out files of preference pairs; each is a column of the table"
    )
    epochs: float | None = option(
        1.0, "passes over the pairs; None: set by --train.num_steps", ABOVE_ZERO
    )
    context_length: int | None = option(
        None,
        "maximum tokens of a conversation; None: the model's context length. The model keeps its "
        "own context",
        limits_of(ModelConfig, "context_length"),
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
class PairTrainConfig(TrainConfig):
    """TrainConfig whose num_steps may come from data.epochs."""

    num_steps: int | None = dataclasses.field(
        default=None,
        kw_only=True,
        metadata={
            "help": "total number of optimizer steps of the run; None: set by --data.epochs",
            "limits": ONE_OR_MORE,
        },
    )


class PairConfig(StageConfig, Protocol):
    """Config of a run that trains on pairs (experiments/reward_model.py, experiments/dpo.py)."""

    @property
    def data(self) -> PairData: ...


def read_pair_rows(
    paths: Sequence[str],
    config: PairConfig,
    tokenizer: Tokenizer,
    log: Callable[[str], None] = print,
) -> PairRows:
    """Returns the encoded pairs of the given files; logs how many were kept and skipped."""
    counts = Counts()
    rows = PairRows(
        read_pairs(paths, counts),
        tokenizer,
        context_length=row_length(config),
        counts=counts,
        variables=config.data.variables,
    )
    log(f"pairs: {counts}")
    return rows


def read_held_out(
    config: PairConfig, tokenizer: Tokenizer, log: Callable[[str], None] = print
) -> dict[str, PairRows]:
    """Returns the rows of each held-out file, keyed by file name."""
    paths = config.data.eval_pairs
    return {
        name: read_pair_rows((path,), config, tokenizer, log)
        for name, path in zip(unique_names(paths), paths, strict=True)
    }
