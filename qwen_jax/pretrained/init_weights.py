"""Weights that a training run begins from: a released folder or another run's."""

import os
from collections.abc import Callable

import jax

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.huggingface import load_pretrained, open_pretrained
from qwen_jax.types import Params

# What a model computes, given its weights. The rest (context_length, dtypes, dropout, remat, the
# context extension) may be chosen anew.
_FIXED = (
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


def weights_from(path: str | os.PathLike, config: ModelConfig) -> Callable[[Params], Params]:
    """Checks the folder against `config` now; what it returns loads the weights later.

    Returns:
      abstract parameters, with shardings -> the weights, in config.param_dtype.

    Raises:
      ConfigError: another architecture, with every flag that differs; or as load_pretrained.
      CheckpointError: as load_pretrained.
    """
    theirs, ours = _settings(open_pretrained(path).config), _settings(config)
    differing = [
        f"--model.{name}={theirs[name]} (not {ours[name]})"
        for name in _FIXED
        if theirs[name] != ours[name]
    ]
    if differing:
        raise ConfigError(
            "the run's model is not that of the weights it is to begin from.",
            f"--init_from={path}",
            f"set {', '.join(differing)}.",
        )

    def load(abstract: Params) -> Params:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        return load_pretrained(path, param_dtype=config.param_dtype, shardings=shardings)[1]

    return load


def _settings(config: ModelConfig) -> dict[str, object]:
    derived = {"num_kv_heads": config.kv_heads, "head_size": config.head_dim}
    return {name: derived.get(name, getattr(config, name)) for name in _FIXED}
