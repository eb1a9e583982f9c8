"""A fine-tuning run: packed conversations, loss on the assistant's turns. Report: 3.1."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from qwen_jax.config import ModelConfig, option
from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.sft_rows import Example, PackedRows, encode, trained_bytes
from qwen_jax.pretrained.start import StageConfig, start_of
from qwen_jax.ranges import Checked, limits_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.supervised import HeldOut, language_evaluation
from qwen_jax.train.supervised_examples import held_out_batches, train_on_examples
from qwen_jax.types import TrainState
from qwen_jax.utils.jsonl import unique_names


@dataclasses.dataclass(frozen=True)
class SFTData(Checked, where="data.{}"):
    """Settings of the conversation data."""

    conversations: tuple[str, ...] = option((), ".json and .jsonl files of conversations")
    eval_conversations: tuple[str, ...] = option(
        (), "held-out files of conversations, each evaluated separately"
    )
    mask: Literal["assistant", "original"] = option(
        "assistant",
        "tokens with loss. assistant: its turns; original: also every turn's markers (released "
        "script)",
    )
    packed: bool = option(
        True, "pack several conversations into one sequence; attention is within each"
    )
    context_length: int | None = option(
        None,
        "tokens per packed sequence; None: the model's context length",
        limits_of(ModelConfig, "context_length"),
    )


class SFTConfig(StageConfig, Protocol):
    """Config of a fine-tuning run (experiments/sft.py)."""

    @property
    def data(self) -> SFTData: ...


def read_rows(
    paths: Sequence[str],
    config: SFTConfig,
    tokenizer: Tokenizer,
    log: Callable[[str], None] = print,
) -> tuple[PackedRows, list[Example]]:
    """Returns the packed rows of the files and their examples; logs what was kept and skipped."""
    counts, length = Counts(), config.model.context_length
    examples = list(
        encode(
            read_conversations(paths, counts),
            tokenizer,
            context_length=length,
            counts=counts,
            mask=config.data.mask,
        )
    )
    rows = PackedRows(examples, context_length=length, packed=config.data.packed)
    log(f"data: {counts}")
    log(
        f"rows: {len(rows):,} of {length} tokens, {100 * rows.efficiency:.1f} % full, "
        f"{_trained_tokens(examples):,.0f} loss tokens"
    )
    return rows, examples


def train_sft(
    config: SFTConfig,
    rows: PackedRows,
    tokenizer: Tokenizer,
    *,
    log: Callable[[str], None] = print,
) -> TrainState:
    """Trains until num_steps; train.run.run documents errors and resuming."""
    paths = config.data.eval_conversations
    held_out = tuple(
        _held_out(name, path, config, tokenizer, log)
        for name, path in zip(unique_names(paths), paths, strict=True)
    )
    log(f"{config.train.batch_size * config.train.num_steps / len(rows):.2f} epochs")
    return train_on_examples(
        rows,
        config,
        training_stage="sft",
        log=log,
        tokenizer=tokenizer,
        **start_of(config),
        objective=make_objective(config.model, z_loss=config.train.z_loss),
        evaluate=language_evaluation(make_objective(config.model, training=False), held_out, log),
    )


def _held_out(name: str, path: str, config: SFTConfig, tokenizer: Tokenizer, log) -> HeldOut:
    rows, examples = read_rows((path,), config, tokenizer, log)
    return HeldOut(
        name=name,
        bytes_per_token=trained_bytes(examples, tokenizer) / _trained_tokens(examples),
        batches=functools.partial(held_out_batches, rows, config, config.train.eval_batches),
    )


def _trained_tokens(examples: Sequence[Example]) -> float:
    return sum(float(example.weights[1:].sum()) for example in examples)
