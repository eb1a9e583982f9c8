"""Keeps the settings of the released model that a run started from, for the run's export.

They are byte for byte as they were released, next to the files of the tokenizer.
"""

import os
import pathlib
from collections.abc import Mapping

from qwen_jax.errors import CheckpointError
from qwen_jax.utils.files import atomic_write, read_bytes, read_json
from qwen_jax.utils.hub import adapter_base, is_adapter

CONFIG, GENERATION = "config.json", "generation_config.json"
RELEASED = "released_config.json"  # name of the released config.json in the folder of a run
_FIX = "restore the file, or download it again."


def read_released(folder: str | os.PathLike) -> dict[str, bytes]:
    """Returns the released settings that a model folder has: {name when released: content}.

    The names are config.json and generation_config.json.

    Args:
      folder: a released folder, or a run; for a PEFT adapter, those of its base.

    Raises:
      CheckpointError: a file cannot be read.
    """
    folder = pathlib.Path(adapter_base(folder) if is_adapter(folder) else folder)
    sources = {CONFIG: folder / RELEASED, GENERATION: folder / GENERATION}
    if not sources[CONFIG].is_file() and _is_released(folder / CONFIG):
        sources[CONFIG] = folder / CONFIG
    return {
        name: read_bytes(path, error=CheckpointError, fix=_FIX)
        for name, path in sources.items()
        if path.is_file()
    }


def write_released(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Writes released settings into the folder of a run, and removes those of an earlier one."""
    for name in (CONFIG, GENERATION):
        path = folder / (RELEASED if name == CONFIG else name)
        if name not in files:
            path.unlink(missing_ok=True)
            continue
        with atomic_write(path) as file:
            file.write(files[name])


def _is_released(config: pathlib.Path) -> bool:
    return config.is_file() and "model_type" in read_json(config, error=CheckpointError, fix=_FIX)
