"""What a training run starts from, by --init_from: weights, architecture, tokenizer."""

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
from qwen_jax.pretrained.arrays import place
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

# What a model computes, given its weights. The rest (context_length, dtypes, dropout, remat, the
# context extension) a run may choose anew.
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
    """What the config of a stage after pretraining has, once `start` has been through it."""

    @property
    def init_from(self) -> str: ...

    @property
    def lora(self) -> LoRAConfig: ...


def start(config, context_length: int | None = None) -> tuple[Any, Tokenizer]:
    """An experiment's config with a ModelConfig in place of its ModelOverrides, and the tokenizer.

    Args:
      config: has model, init_from and tokenizer (a file; None: the one in init_from).
      context_length: of the stage; None: the folder's.

    Returns:
      The config as a run records it: its `model` is the folder's, computed as the stage says.

    Raises:
      ConfigError: no folder is named, no tokenizer is found, or one of more ids than the model has.
    """
    if not config.init_from:
        raise ConfigError(
            "no model to start from.", "--init_from", "name a run folder or a released Qwen folder."
        )
    model = adopt(config.model, config.init_from, context_length=context_length)
    tokenizer = find_tokenizer(config.init_from, config.tokenizer)
    check_vocabulary(tokenizer, model, flag="--tokenizer")
    return dataclasses.replace(config, model=model), tokenizer


def adopt(
    computed: ModelOverrides | ModelConfig, folder: str, *, context_length: int | None = None
) -> ModelConfig:
    """The folder's model, computed as `computed` is.

    Args:
      context_length: None: the folder's.
    """
    raw, path = _config_of(folder), pathlib.Path(folder)
    found = run_config(raw, path) if is_run(raw) else open_pretrained(folder).config
    if context_length is not None:
        found = dataclasses.replace(found, context_length=context_length)
    return ModelOverrides.of(computed).apply(found)


def weights_of(
    init_from: str | os.PathLike, like: ModelConfig | None = None
) -> Callable[[Params], Params]:
    """abstract Params with shardings -> the folder's weights, each placed where it will live.

    Args:
      like: a config whose architecture the folder must have, checked now; None: any.

    Raises:
      ConfigError: another architecture, with every flag to set.
      CheckpointError: as load_pretrained.
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
    """`initial` and `adapters` of train.supervised.train: the weights of init_from are trained, or
    adapters beside them.

    Beside adapters they are loaded once for all callers: DPO's reference is the same arrays.

    Raises:
      CheckpointError: the run in run_dir was started beside other weights, or they are gone.
    """
    if config.lora.rank is None:
        return {"initial": weights_of(config.init_from), "adapters": None}
    initial, base = frozen_weights_of(config.init_from, config)
    return {"initial": initial, "adapters": Adapters(config.lora, base)}


def scoring_start_of(config: StageConfig) -> dict[str, Any]:
    """start_of for a scoring model, and its `specs`: beside adapters its score is trained too."""
    seed = config.train.seed
    if config.lora.rank is None:
        initial, adapters = scoring_weights_of(config.init_from, seed=seed), None
    else:
        initial, base = frozen_scoring_weights_of(config.init_from, config)
        adapters = Adapters(config.lora, base)
    return {"initial": initial, "adapters": adapters, "specs": scoring_specs}


def frozen_weights_of(init_from: str, config) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """What adapters stand beside, and what base.json says of it.

    Returns:
      abstract Params with shardings -> the weights of init_from, in model.compute_dtype, loaded
      once; and a record for the run's folder. A run that goes on gets the checkpoint of init_from
      that it started with.

    Raises:
      CheckpointError: the run in run_dir was started beside other weights, or they are gone.
    """
    source, base = _base_of(init_from, config, open_pretrained, merged.NAME, param_specs)

    loaded = []

    def initial(abstract):
        if not loaded:
            loaded.append(load_params(source, jax.tree.map(lambda leaf: leaf.sharding, abstract)))
        return loaded[0]

    return initial, base


def frozen_scoring_weights_of(
    init_from: str, config, record: str = merged.NAME
) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """frozen_weights_of for a scoring model's folder, or a language model's with a fresh score.

    Args:
      record: the file of the run's folder that says what the adapters stand beside.
    """
    source, base = _base_of(init_from, config, open_scoring, record, trunk_specs)
    return functools.partial(_place_scoring, source, seed=config.train.seed), base


def _base_of(init_from: str, config, open_source, record: str, specs):
    """A base opened in the dtype of training, and its record as JSON holds it."""
    folder, dtype = pathlib.Path(config.run_dir), config.model.compute_dtype
    if (folder / record).is_file():
        base = merged.read_base(folder, record)
        source = open_source(base.folder, param_dtype=dtype, step=base.step)
        merged.check(base, source, folder, specs)
    else:
        source = open_source(init_from, param_dtype=dtype)
        base = merged.identify(init_from, source, specs)
    return source, dataclasses.asdict(base)


def is_scoring_run(folder: str) -> bool:
    """Whether a folder is a reward model's run."""
    return is_scoring(_config_of(folder))


def scoring_weights_of(init_from: str, *, seed: int) -> Callable[[Any], Any]:
    """abstract ScoringParams with shardings -> a reward model's weights, or a language model's
    with a fresh score."""

    def initial(abstract: ScoringParams) -> ScoringParams:
        source = open_scoring(init_from, param_dtype=str(abstract.score.dtype))
        return _place_scoring(source, abstract, seed=seed)

    return initial


def _place_scoring(source: merged.Source, abstract: ScoringParams, *, seed: int) -> ScoringParams:
    """The weights of an opened folder, each placed where it will live."""

    def load(path, leaf):
        name = jax.tree_util.keystr(path).lstrip(".")
        if name == "score" and isinstance(source, Trunk):
            spec = scoring_specs(source.config).score
            return jax.device_put(
                init_from_specs(spec, jax.random.key(seed), leaf.dtype), leaf.sharding
            )
        return place(leaf.shape, leaf.sharding, functools.partial(source.read, name))

    return jax.tree_util.tree_map_with_path(load, abstract)


def _check_architecture(init_from: str | os.PathLike, config: ModelConfig) -> None:
    theirs, ours = _architecture(open_pretrained(init_from).config), _architecture(config)
    differing = [
        f"--model.{name}={theirs[name]} (not {ours[name]})"
        for name in _ARCHITECTURE
        if theirs[name] != ours[name]
    ]
    if differing:
        raise ConfigError(
            "the run's model is not that of the weights it is to begin from.",
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
            "no model lies here: there is no config.json.",
            folder,
            "name a run folder or a released Qwen folder.",
        )
    return read_json(path, error=CheckpointError)
