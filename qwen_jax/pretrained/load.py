"""Loads a model folder for inference: its weights and tokenizer, or only its config."""

import os
import pathlib

from jax.sharding import Mesh

from qwen_jax import sizes
from qwen_jax.checkpoint.bucket.reader import local_folder
from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.pretrained.config_json import layout_of, read_config
from qwen_jax.pretrained.from_run import is_run, run_config
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import has_tokenizer
from qwen_jax.tokenizer.model_folder import check_vocabulary, find_tokenizer
from qwen_jax.types import Params
from qwen_jax.utils.files import read_json
from qwen_jax.utils.hub import adapter_base, is_adapter


def load_model(
    checkpoint: str,
    tokenizer: str | None = None,
    *,
    mesh: Mesh | None = None,
    allow_nonfinite: bool = False,
) -> tuple[ModelConfig, Params, Tokenizer]:
    """Loads the model of a run folder or a released folder, and its tokenizer.

    Args:
      checkpoint: path of the folder, or a name on the Hub.
      tokenizer: a folder or file of another tokenizer; None: the tokenizer in the folder.
      mesh: the devices to shard the weights over; None: one device.
      allow_nonfinite: whether to accept weights with NaN or infinity.

    Raises:
      ConfigError: `checkpoint` is empty, no tokenizer is found, or it does not fit the model.
      CheckpointError, TokenizerError: files are missing or corrupted, or weights are not finite.
    """
    if not checkpoint:
        raise ConfigError("no model is set.", "--checkpoint", "pass a model folder; see --help.")
    checkpoint = local_folder(checkpoint, where="--checkpoint")
    found = tokenizer_of(checkpoint, tokenizer)
    config, params = load_pretrained(checkpoint, mesh=mesh, allow_nonfinite=allow_nonfinite)
    check_vocabulary(found, config, flag="--tokenizer")
    return config, params, found


def tokenizer_of(folder: str | os.PathLike, tokenizer: str | None = None) -> Tokenizer:
    """Loads the tokenizer of a model folder; a PEFT adapter without one has that of its base.

    Args:
      tokenizer: the folder or the file of another tokenizer; None: the one in the folder.

    Raises:
      ConfigError, TokenizerError: as find_tokenizer.
    """
    if tokenizer is None and is_adapter(folder) and not has_tokenizer(folder):
        folder = adapter_base(folder)
    return find_tokenizer(folder, tokenizer)


def has_weights(folder: str) -> bool:
    """Returns whether a folder has weights, or checkpoints of a run."""
    path = pathlib.Path(folder)
    return path.is_dir() and (any(path.glob("*.safetensors")) or (path / "checkpoints").is_dir())


def model_config(name: str, *, where: str = "--size") -> ModelConfig:
    """Returns the config of a size of sizes.py, or of a config.json.

    Args:
      name: name of a size; or the path of a config.json, of a run or in a released layout, or of
        its folder; or a name on the Hub.
      where: the flag that has the name, for the error.

    Raises:
      ConfigError: the size is unknown, or the model is not implemented here.
    """
    if sizes.canonical(name) is not None:
        return sizes.by_name(name, where=where)
    path = pathlib.Path(local_folder(name, where=where))
    if not path.exists():
        if path.suffix == ".json" or len(path.parts) > 1:
            raise ConfigError(
                f"there is no file or folder {name}.", where, "pass a config.json, or a size."
            )
        return sizes.by_name(name, where=where)
    path = path / "config.json" if path.is_dir() else path
    raw = read_json(path, fix="pass a config.json.")
    if is_run(raw):
        return run_config(raw, path.parent)
    return ModelConfig(**read_config(raw, layout_of(raw, path), path))
