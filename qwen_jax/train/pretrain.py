"""A pretraining run: next-token prediction on token shards. Report: 2.4.

Batches come from data/loader.py and the objective from language_model.py. As in every training
stage, run.py runs the loop.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

from qwen_jax.config import DataConfig
from qwen_jax.data import shards
from qwen_jax.data.loader import Loader, folder_and_weight
from qwen_jax.errors import ConfigError
from qwen_jax.parallel.batch_rows import rows_here
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.tokenizer.model_folder import check_vocabulary
from qwen_jax.train.attempts.inputs import Input
from qwen_jax.train.job import RunConfig, row_length
from qwen_jax.train.language_model import make_objective
from qwen_jax.train.supervised import (
    Benchmarks,
    HeldOut,
    language_evaluation,
    train,
    with_benchmarks,
)
from qwen_jax.types import Params, TrainState

MANY_EPOCHS = 100  # beyond the few that help (Muennighoff et al. 2023), and toy runs


class PretrainConfig(RunConfig, Protocol):
    """The fields of the config of a pretraining run (experiments/pretrain.py)."""

    @property
    def data(self) -> DataConfig: ...


def tokenizer_of(data: DataConfig) -> Tokenizer:
    """Loads the tokenizer from data.tokenizer, or from next to the first source's shards.

    Raises:
      DataError: the first source is not a shard folder.
      TokenizerError: the file is missing or damaged.
    """
    if data.tokenizer:
        return load_tokenizer(data.tokenizer)
    folder = folder_and_weight(data.sources[0])[0]
    opened = shards.open_shards(folder, verify=False)  # its errors name a wrong folder
    return load_tokenizer(opened.folder.parent)


def check_sources(data: DataConfig) -> None:
    """Raises a ConfigError if there is nothing to train on."""
    if not data.sources:
        raise ConfigError(
            "no training data is set.",
            "--data.sources",
            "pass folders of token shards; --help shows how to create them.",
        )


def pretrain(
    config: PretrainConfig,
    tokenizer: Tokenizer,
    *,
    initial: Callable[[Params], Params] | None = None,
    inputs: Callable[[], Sequence[Input]] = tuple,
    benchmarks: Benchmarks | None = None,
    log: Callable[[str], None] = print,
) -> TrainState:
    """Trains until num_steps. See train.run.run for resuming and further errors.

    Args:
      initial: abstract parameters (with shardings) -> initial parameters; None: random
        initialization.
      inputs: returns the weights that `initial` has read.
      benchmarks: runs benchmarks (evaluate/in_training.py); None: none.

    Raises:
      ConfigError: the tokenizer has more ids than the model's vocabulary, or rows are longer than
        its context.
      DataError: shards are missing, corrupted, or written with another tokenizer.
    """
    model = config.model
    check_vocabulary(
        tokenizer,
        model,
        flag="--model.vocab_size, --data.tokenizer",
        fix=f"use --model.vocab_size={-(-tokenizer.vocab_size // 128) * 128}.",
    )
    if row_length(config) > model.context_length:
        raise ConfigError(
            f"rows of {row_length(config)} tokens are longer than the model's context of "
            f"{model.context_length}.",
            "--data.context_length, --model.context_length",
            "raise --model.context_length, or use shorter rows.",
        )
    loader = _loader(config, tokenizer, config.data.sources)
    tokens, epochs = loader.tokens_per_epoch, loader.epochs(config.train.num_steps)
    log(
        "data: "
        + "; ".join(
            f"{name} {tokens[name]:,} tokens, {epochs[name]:.2f} epochs" for name in loader.names
        )
    )
    for name in loader.names:
        if epochs[name] > MANY_EPOCHS:
            log(
                f"warning: {name}: {epochs[name]:,.0f} epochs. Training repeats the same text that "
                "often; use more text, or a lower --train.num_steps."
            )
    held_out = tuple(_held_out(config, tokenizer, source) for source in config.data.eval_sources)
    return train(
        config,
        training_stage="pretrain",
        log=log,
        tokenizer=tokenizer,
        batches=loader.iterate,
        initial=initial,
        inputs=inputs,
        objective=make_objective(model, z_loss=config.train.z_loss),
        evaluate=with_benchmarks(
            language_evaluation(make_objective(model, training=False), held_out, log),
            benchmarks,
            config.train.num_steps,
        ),
    )


def _loader(config: PretrainConfig, tokenizer: Tokenizer, sources: tuple[str, ...]) -> Loader:
    return Loader(
        dataclasses.replace(config.data, sources=sources),
        context_length=row_length(config),
        batch_size=config.train.batch_size,
        end_of_text=tokenizer.end_of_text,
        vocab_size=config.model.vocab_size,
        tokenizer=tokenizer.fingerprint,
        seed=config.train.seed,
        rows=rows_here(make_mesh(config.mesh), config.train.batch_size),
    )


def _held_out(config: PretrainConfig, tokenizer: Tokenizer, source: str) -> HeldOut:
    text = _loader(config, tokenizer, (source,))
    return HeldOut(
        name=text.names[0],
        bytes_per_token=text.bytes_per_token,
        batches=functools.partial(text.eval_batches, config.train.eval_batches),
    )
