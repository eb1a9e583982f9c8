"""Loads the starting point of a training run (--init_from): weights, architecture, tokenizer."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax

from qwen_jax.config import ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.model.spec import init_from as init_from_specs
from qwen_jax.model.spec import param_specs
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.pretrained import merged
from qwen_jax.pretrained.arrays import load_sharded
from qwen_jax.pretrained.finite import FiniteCheck
from qwen_jax.pretrained.from_run import is_run, run_config
from qwen_jax.pretrained.huggingface import load_params, load_pretrained, open_pretrained
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.scoring import Trunk, is_scoring, open_scoring, trunk_specs
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.model_folder import check_vocabulary, find_tokenizer
from qwen_jax.train.adapters import Adapters
from qwen_jax.train.job import RunConfig
from qwen_jax.types import Params, ScoringParams
from qwen_jax.utils.files import read_json

# The fields that determine what given weights compute. A run can override the others
# (context_length, dtypes, dropout, remat, the context extension).
_ARCHITECTURE = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "ffn_size",
    "tie_embeddings",
    "rope_base",
    "norm_epsilon",
)


class StageConfig(RunConfig, Protocol):
    """The config of a stage after pretraining, as returned by `start`."""

    @property
    def init_from(self) -> str: ...

    @property
    def lora(self) -> LoRAConfig: ...


def start(config, context_length: int | None = None) -> tuple[Any, Tokenizer]:
    """Resolves a stage's ModelOverrides to a ModelConfig, and finds the tokenizer.

    Args:
      config: has model, init_from and tokenizer (a file; None: the one in init_from).
      context_length: the stage's context length; None: that of the folder.

    Returns:
      The config that the run records, whose `model` is the folder's with the overrides, and the
      tokenizer.

    Raises:
      ConfigError: init_from is empty, no tokenizer is found, or it has more ids than the model.
    """
    if not config.init_from:
        raise ConfigError(
            "no model to start from.", "--init_from", "pass a run folder or a released Qwen folder."
        )
    model = adopt(config.model, config.init_from, context_length=context_length)
    tokenizer = find_tokenizer(config.init_from, config.tokenizer)
    check_vocabulary(tokenizer, model, flag="--tokenizer")
    return dataclasses.replace(config, model=model), tokenizer


def adopt(
    computed: ModelOverrides | ModelConfig, folder: str, *, context_length: int | None = None
) -> ModelConfig:
    """Returns the folder's ModelConfig with the overrides of `computed`.

    Args:
      context_length: the context length to set; None: that of the folder.
    """
    raw, path = _config_of(folder), pathlib.Path(folder)
    found = run_config(raw, path) if is_run(raw) else open_pretrained(folder).config
    if context_length is not None:
        found = dataclasses.replace(found, context_length=context_length)
    return ModelOverrides.of(computed).apply(found)


def weights_of(
    init_from: str | os.PathLike, like: ModelConfig | None = None
) -> Callable[[Params], Params]:
    """Returns a function that loads the folder's weights onto the shardings of abstract Params.

    Args:
      like: a config whose architecture the folder must have, checked immediately; None: not
        checked.

    Raises:
      ConfigError: the architecture differs; the error lists every flag to set.
      CheckpointError: as in load_pretrained.
    """
    if like is not None:
        _check_architecture(init_from, like)

    def initial(abstract: Params) -> Params:
        leaves = jax.tree.leaves(abstract)
        _, params = load_pretrained(
            init_from,
            param_dtype=str(leaves[0].dtype),
            shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        )
        return params

    return initial


def start_of(config: StageConfig) -> dict[str, Any]:
    """Returns the arguments `initial` and `adapters` of train.supervised.train.

    Full fine-tuning trains the weights of init_from. LoRA trains adapters on top of them and loads
    the frozen weights once for all callers, so DPO's reference model shares the same arrays.

    Raises:
      CheckpointError: the run in run_dir was started from different weights, or they are missing.
    """
    if config.lora.rank is None:
        return {"initial": weights_of(config.init_from), "adapters": None}
    initial, base = frozen_weights_of(config.init_from, config)
    return {"initial": initial, "adapters": Adapters(config.lora, base)}


def scoring_start_of(config: StageConfig) -> dict[str, Any]:
    """Like start_of, for a scoring model with its `specs`; LoRA also trains the score head."""
    seed = config.train.seed
    if config.lora.rank is None:
        initial, adapters = scoring_weights_of(config.init_from, seed=seed), None
    else:
        initial, base = frozen_scoring_weights_of(config.init_from, config)
        adapters = Adapters(config.lora, base)
    return {"initial": initial, "adapters": adapters, "specs": scoring_specs}


def frozen_weights_of(init_from: str, config) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """Returns a loader of the frozen base of adapters, and its record for base.json.

    The loader maps abstract Params with shardings to the weights of init_from in
    model.compute_dtype, and loads them once. A resumed run loads the checkpoint of init_from that
    it started from.

    Raises:
      CheckpointError: the run in run_dir was started from different weights, or they are missing.
    """
    source, base = _open_base(init_from, config, open_pretrained, merged.NAME, param_specs)

    loaded = []

    def initial(abstract):
        if not loaded:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            loaded.append(load_params(source, shardings, where=init_from))
        return loaded[0]

    return initial, base


def frozen_scoring_weights_of(
    init_from: str, config, record: str = merged.NAME
) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """Like frozen_weights_of, for a scoring model, or a language model with a new score head.

    Args:
      record: name of the file in the run folder that records the base.
    """
    source, base = _open_base(init_from, config, open_scoring, record, trunk_specs)
    load = functools.partial(_load_scoring, source, where=init_from, seed=config.train.seed)
    return load, base


def _open_base(init_from: str, config, open_source, record: str, specs):
    """Opens a base in the training dtype; returns it and its record as JSON."""
    folder, dtype = pathlib.Path(config.run_dir), config.model.compute_dtype
    if (folder / record).is_file():
        base = merged.read_base(folder, record)
        source = open_source(base.folder, param_dtype=dtype, step=base.step)
        merged.check_base(base, source, folder, specs)
    else:
        source = open_source(init_from, param_dtype=dtype)
        base = merged.identify(init_from, source, specs)
    return source, dataclasses.asdict(base)


def is_scoring_run(folder: str) -> bool:
    """Returns whether a folder is a reward model run."""
    return is_scoring(_config_of(folder))


def scoring_weights_of(init_from: str, *, seed: int) -> Callable[[Any], Any]:
    """Like weights_of, for a reward model, or a language model with a new score head.

    Args:
      seed: random seed of the new score head.
    """

    def initial(abstract: ScoringParams) -> ScoringParams:
        source = open_scoring(init_from, param_dtype=str(abstract.score.dtype))
        return _load_scoring(source, abstract, where=init_from, seed=seed)

    return initial


def _load_scoring(
    source: merged.Source, abstract: ScoringParams, *, where: str, seed: int
) -> ScoringParams:
    """Loads the weights of an opened folder onto the shardings of `abstract`."""
    finite = FiniteCheck(where)
    read = finite.watch(source.read)

    def load(path, leaf):
        name = jax.tree_util.keystr(path).lstrip(".")
        if name == "score" and isinstance(source, Trunk):
            spec = scoring_specs(source.config).score
            return jax.device_put(
                init_from_specs(spec, jax.random.key(seed), leaf.dtype), leaf.sharding
            )
        return load_sharded(leaf.shape, leaf.sharding, functools.partial(read, name))

    params = jax.tree_util.tree_map_with_path(load, abstract)
    finite.check()
    return params


def _check_architecture(init_from: str | os.PathLike, config: ModelConfig) -> None:
    theirs, ours = _architecture(open_pretrained(init_from).config), _architecture(config)
    differing = [
        f"--model.{name}={theirs[name]} (not {ours[name]})"
        for name in _ARCHITECTURE
        if theirs[name] != ours[name]
    ]
    if differing:
        raise ConfigError(
            "the run's architecture differs from that of --init_from.",
            f"--init_from={init_from}",
            f"set {', '.join(differing)}.",
        )


def _architecture(config: ModelConfig) -> dict[str, object]:
    derived = {"num_kv_heads": config.kv_heads, "head_size": config.head_dim}
    return {name: derived.get(name, getattr(config, name)) for name in _ARCHITECTURE}


def _config_of(folder: str) -> dict[str, Any]:
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise ConfigError(
            "this is not a model folder: it has no config.json.",
            folder,
            "pass a run folder or a released Qwen folder.",
        )
    return read_json(path, error=CheckpointError)
