"""Names of models on the Hugging Face Hub, such as Qwen/Qwen3-0.6B: the local folder of each.

The library huggingface_hub downloads and caches them; the extra `hub` installs it.
"""

import contextlib
import os
import pathlib
import re

from absl import logging

from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.utils.files import read_json

ADAPTER = "adapter_config.json"  # of a PEFT adapter
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/[^/]+")
# Weights in other formats are not read.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.tiktoken", "*.md", "LICENSE*"]


def local_folder(name: str | os.PathLike, *, where: str = "model") -> str:
    """Returns the local folder of a model, which a name of the Hub is downloaded to if it is new.

    A path that exists is returned as it is, also if it looks like a name of the Hub. A model that
    is complete in the cache is used as it is there, without a connection.

    Args:
      name: a path, or a name such as Qwen/Qwen3-0.6B. A name that cannot be one of the Hub is
        returned, and whoever opens it says that it is missing.
      where: the flag, for errors.

    Raises:
      ConfigError: huggingface_hub is missing.
      CheckpointError: the model is not in the cache, and cannot be downloaded; the error has the
        command that does it.
    """
    name = str(name)
    if not _NAME.fullmatch(name) or name.endswith((".json", ".tiktoken")):
        return name
    if pathlib.Path(name).exists():
        logging.log_first_n(logging.INFO, "%s is the local folder, not the Hub's.", 1, name)
        return name
    if pathlib.Path(name).parent.is_dir():  # a typing error in a path is no reason to connect
        return name
    try:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ConfigError(
            f"{name} is not a folder here, and reading it from the Hub needs huggingface_hub.",
            where,
            'check the path, or pip install "qwen_jax[hub]".',
        ) from error
    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            cached = huggingface_hub.snapshot_download(
                name, allow_patterns=_FILES, local_files_only=True
            )
            if _is_complete(pathlib.Path(cached)):
                return cached
        return huggingface_hub.snapshot_download(name, allow_patterns=_FILES)
    except HFValidationError:
        return name
    except Exception as error:  # of the connection, the Hub or the disk; there are many classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name} is not a folder here, nor complete in the cache of the Hub, and it cannot be "
            f"downloaded: {reason[:300]}",
            where,
            f"check the name; where there is a connection, run: hf download {name}",
        ) from error


def name_of(folder: str | os.PathLike) -> str:
    """Returns the name on the Hub of a folder in its cache, and of another folder its path."""
    match = _SNAPSHOT.search(str(folder))
    return f"{match[1]}/{match[2]}" if match else str(folder)


def is_adapter(folder: str | os.PathLike) -> bool:
    """Returns whether a folder is a PEFT adapter, without the weights of a model."""
    folder = pathlib.Path(folder)
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def adapter_base(folder: str | os.PathLike) -> str:
    """Returns the local folder of the model that a PEFT adapter was trained on.

    Raises:
      CheckpointError: the adapter does not name it, or it is missing.
    """
    where = pathlib.Path(folder) / ADAPTER
    name = read_json(where, error=CheckpointError).get("base_model_name_or_path")
    fix = "set base_model_name_or_path in this file to the folder of the base model."
    if not isinstance(name, str) or not name:
        raise CheckpointError("the adapter does not name its base model.", str(where), fix)
    relative = pathlib.Path(folder) / name  # paths are relative to the working directory, or to it
    found = str(relative) if not pathlib.Path(name).exists() and relative.is_dir() else name
    found = local_folder(found, where=str(where))
    if not pathlib.Path(found).is_dir():
        raise CheckpointError(f"the base model of the adapter is missing: {name}.", str(where), fix)
    return found


def _is_complete(folder: pathlib.Path) -> bool:
    """Returns whether a cached folder has the files of a model: others may be downloaded later."""
    if (folder / ADAPTER).is_file():
        return (folder / "adapter_model.safetensors").is_file()
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    listed = read_json(index, error=CheckpointError).get("weight_map")
    files = set(listed.values()) if isinstance(listed, dict) else {""}
    return all((folder / str(file)).is_file() for file in files)
