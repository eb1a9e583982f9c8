"""Where a stage after pretraining starts: the weights, architecture and tokenizer of a folder."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from experiments.sample import find_tokenizer
from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.export.huggingface import load_pretrained, pretrained_config
from qwen_jax.tokenizer.bpe import Tokenizer

# How a stage computes is its own; what is computed is the folder's.
_OF_THE_STAGE = ("dropout", "compute_dtype", "param_dtype", "remat", "unroll_layers", "attention")


def adopt(model: ModelConfig, init_from: str, *, context_length: int | None = None) -> ModelConfig:
    """The folder's architecture with the stage's dropout, dtypes, remat and back end.

    Args:
      context_length: of the stage; None: the folder's.

    Raises:
      ConfigError: no folder is named.
    """
    if not init_from:
        raise ConfigError("no model to start from.", "--init_from",
                          "name a run folder or a released Qwen folder.")
    found = pretrained_config(init_from)
    changes = {name: getattr(model, name) for name in _OF_THE_STAGE}
    if context_length is not None:
        changes["context_length"] = context_length
    return dataclasses.replace(found, **changes)


def weights_of(init_from: str) -> Callable[[Any], Any]:
    """abstract Params with shardings -> the folder's weights, each placed where it will live."""

    def initial(abstract):
        leaves = jax.tree.leaves(abstract)
        _, params = load_pretrained(
            init_from, param_dtype=str(leaves[0].dtype),
            shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))
        return params

    return initial


def tokenizer_of(folder: str, named: str | None) -> Tokenizer:
    """The tokenizer that is named, or the one in the folder."""
    return Tokenizer.from_file(named or find_tokenizer(folder))
