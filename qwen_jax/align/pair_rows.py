"""The pairs that a reward model or DPO learns from: which files, as rows, how often."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from qwen_jax.config import option
from qwen_jax.data.chat.conversations import Counts
from qwen_jax.data.chat.pairs import PairRows, read_pairs
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


class PairConfig(StageConfig, Protocol):
    """What the config of a run on pairs has (experiments/reward_model.py, experiments/dpo.py)."""

    data: PairData


def read_pair_rows(
    paths: Sequence[str],
    config: PairConfig,
    tokenizer: Tokenizer,
    emit: Callable[[str], None] = print,
) -> PairRows:
    """The pairs of some files, after saying what became of the data."""
    counts = Counts()
    rows = PairRows(
        read_pairs(paths, counts),
        tokenizer,
        context_length=config.model.context_length,
        counts=counts,
    )
    emit(f"pairs: {counts}")
    return rows


def read_held_out(
    config: PairConfig, tokenizer: Tokenizer, emit: Callable[[str], None] = print
) -> dict[str, PairRows]:
    """The rows of each held-out file, by its name."""
    paths = config.data.eval_pairs
    return {
        name: read_pair_rows((path,), config, tokenizer, emit)
        for name, path in zip(names_of(paths), paths, strict=True)
    }


def for_epochs(config, pairs: int):
    """The config with the number of steps that data.epochs passes over the pairs take."""
    if config.data.epochs is None:
        return config
    steps = max(1, round(config.data.epochs * pairs / config.train.batch_size))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=steps))
