"""Where a stage after pretraining starts: the weights, architecture and tokenizer of a folder."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from experiments.loading import tokenizer_in
from qwen_jax.checkpoint import restore_params
from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.export.huggingface import load_pretrained, open_pretrained
from qwen_jax.model.heads import from_language_model, scoring_specs
from qwen_jax.model.spec import abstract_params
from qwen_jax.model.spec import init_from as init_from_specs
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import ScoringParams

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
    found = open_pretrained(init_from).config
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


def is_scoring_run(folder: str) -> bool:
    """Whether a folder is the run of a reward model: its data are pairs."""
    path = pathlib.Path(folder) / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return "pairs" in (raw.get("data") or {})


def scoring_weights_of(init_from: str, *, seed: int) -> Callable[[Any], Any]:
    """abstract ScoringParams with shardings -> a reward model's weights, or a language model's
    with a fresh score."""

    def initial(abstract: ScoringParams) -> ScoringParams:
        if is_scoring_run(init_from):
            return restore_params(pathlib.Path(init_from) / "checkpoints", abstract)
        config = open_pretrained(init_from).config
        whole = abstract_params(dataclasses.replace(
            config, param_dtype=str(abstract.score.dtype)))
        where = jax.tree.map(lambda leaf: leaf.sharding, abstract.trunk)
        if whole.head is not None:  # read with the rest, and then left out
            where = where.replace(head=abstract.score.sharding)
        _, params = load_pretrained(init_from, param_dtype=str(abstract.score.dtype),
                                    shardings=where)
        fresh = init_from_specs(scoring_specs(config).score, jax.random.key(seed),
                                abstract.score.dtype)
        return from_language_model(params, jax.device_put(fresh, abstract.score.sharding))

    return initial


def tokenizer_of(folder: str, named: str | None) -> Tokenizer:
    """The tokenizer that is named, or the one in the folder."""
    return Tokenizer.from_file(named) if named else tokenizer_in(folder)
