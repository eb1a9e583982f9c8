"""The weights of one of our own run folders."""

import dataclasses
import pathlib
from typing import Any

import jax

from qwen_jax.config import ContextExtension, ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import abstract_params
from qwen_jax.types import Params


def is_run(raw: dict[str, Any]) -> bool:
    """Whether a config.json is that of a run: it has the model's settings under "model"."""
    return isinstance(raw.get("model"), dict) and "model_type" not in raw


def _config_of(settings: dict[str, Any], where: pathlib.Path) -> ModelConfig:
    """The ModelConfig that dataclasses.asdict and JSON made `settings` of."""
    extension = dict(settings.get("extension") or {})
    strange = [name for cls, given in ((ModelConfig, settings), (ContextExtension, extension))
               for name in sorted(set(given) - {field.name for field in dataclasses.fields(cls)})]
    if strange:
        raise ConfigError(f"unknown model settings: {', '.join(strange)}.", str(where),
                          "load the run with the version of qwen_jax in its versions.json.")
    if extension.get("windows") is not None:
        extension["windows"] = tuple(extension["windows"])  # JSON has no tuples
    return ModelConfig(**settings | {"extension": ContextExtension(**extension)})


def load_run(folder: pathlib.Path, raw: dict[str, Any], *, param_dtype: str | None = None,
             shardings: Params | None = None) -> tuple[ModelConfig, Params]:
    """The newest good checkpoint of a run whose config.json holds `raw`.

    Raises:
      ConfigError: config.json names a setting that this version does not have.
      CheckpointError: no checkpoint, or none that is whole.
    """
    from qwen_jax.checkpoint import restore_params  # Orbax: slow to import, and only needed here

    config = _config_of(raw["model"], folder / "config.json")
    params = restore_params(folder / "checkpoints", abstract_params(config, shardings))
    if param_dtype is not None and param_dtype != config.param_dtype:
        config = dataclasses.replace(config, param_dtype=param_dtype)
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    return config, params
