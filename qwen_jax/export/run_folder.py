"""The weights of one of our own run folders."""

import dataclasses
import pathlib
from typing import Any

import jax

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import abstract_params
from qwen_jax.types import Params


def is_run(raw: dict[str, Any]) -> bool:
    """Whether a config.json is that of a run: it has the model's settings under "model"."""
    return isinstance(raw.get("model"), dict) and "model_type" not in raw


def load_run(folder: pathlib.Path, raw: dict[str, Any], *, param_dtype: str | None = None,
             shardings: Params | None = None) -> tuple[ModelConfig, Params]:
    """The newest good checkpoint of a run whose config.json holds `raw`.

    Raises:
      ConfigError: config.json names a setting that this version does not have.
      CheckpointError: no checkpoint, or none that is whole.
    """
    from qwen_jax.checkpoint import restore_params  # Orbax: slow to import, and only needed here

    known = {field.name for field in dataclasses.fields(ModelConfig)}
    strange = sorted(set(raw["model"]) - known)
    if strange:
        raise ConfigError(f"unknown model settings: {', '.join(strange)}.",
                          str(folder / "config.json"),
                          "load the run with the version of qwen_jax in its versions.json.")
    config = ModelConfig(**raw["model"])
    params = restore_params(folder / "checkpoints", abstract_params(config, shardings))
    if param_dtype is not None and param_dtype != config.param_dtype:
        config = dataclasses.replace(config, param_dtype=param_dtype)
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    return config, params
