"""The pairs that a reward model or DPO learns from: which files, as rows, how often."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from qwen_jax.config import TrainConfig, option
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import PairRows, read_pairs
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.start import StageConfig
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.jsonl import names_of


@dataclasses.dataclass(frozen=True)
class PairData:
    """Which comparisons."""

    pairs: tuple[str, ...] = option((), ".json and .jsonl files")
    eval_pairs: tuple[str, ...] = option((), "held out, one column of the table each")
    epochs: float | None = option(1.0, "passes over the pairs; none: train.num_steps counts")
    context_length: int | None = option(None, "tokens of a dialogue; none: the model's")


@dataclasses.dataclass(frozen=True)
class PairTrainConfig(TrainConfig):
    """TrainConfig of a run whose length data.epochs may say."""

    num_steps: int | None = dataclasses.field(
        default=None,
        kw_only=True,
        metadata={"help": "updates of the weights, in the whole run; none: as data.epochs says"},
    )


class PairConfig(StageConfig, Protocol):
    """What the config of a run on pairs has (experiments/reward_model.py, experiments/dpo.py)."""

    @property
    def data(self) -> PairData: ...


def read_pair_rows(
    paths: Sequence[str],
    config: PairConfig,
    tokenizer: Tokenizer,
    log: Callable[[str], None] = print,
) -> PairRows:
    """The pairs of some files, after saying what became of the data."""
    counts = Counts()
    rows = PairRows(
        read_pairs(paths, counts),
        tokenizer,
        context_length=config.model.context_length,
        counts=counts,
    )
    log(f"pairs: {counts}")
    return rows


def read_held_out(
    config: PairConfig, tokenizer: Tokenizer, log: Callable[[str], None] = print
) -> dict[str, PairRows]:
    """The rows of each held-out file, by its name."""
    paths = config.data.eval_pairs
    return {
        name: read_pair_rows((path,), config, tokenizer, log)
        for name, path in zip(names_of(paths), paths, strict=True)
    }


def for_epochs(config: Any, pairs: int, log: Callable[[str], None] = print) -> Any:
    """The config with the number of steps that data.epochs passes over the pairs take.

    Raises:
      ConfigError: neither data.epochs nor train.num_steps is set.
    """
    epochs, train = config.data.epochs, config.train
    if epochs is None and train.num_steps is None:
        raise ConfigError(
            "nothing says how long to train.",
            "--data.epochs, --train.num_steps",
            "set one of them.",
        )
    if epochs is None:
        return config
    if train.num_steps is not None:
        log(f"data.epochs={epochs:g} says how long to train, not train.num_steps")
    steps = max(1, round(epochs * pairs / train.batch_size))
    return dataclasses.replace(config, train=dataclasses.replace(train, num_steps=steps))
