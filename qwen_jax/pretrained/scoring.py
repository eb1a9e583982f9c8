"""Opens a folder as a scoring model: a reward model (a run or released) or a language model.

A language model has no score head. It is the trunk of a scoring model before training.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from qwen_jax.checkpoint.bucket.reader import local_folder
from qwen_jax.config import ModelConfig
from qwen_jax.errors import CheckpointError
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.pretrained import layouts
from qwen_jax.pretrained.adapters import merged
from qwen_jax.pretrained.arrays import Index
from qwen_jax.pretrained.from_run import RunFolder
from qwen_jax.pretrained.huggingface import open_pretrained
from qwen_jax.pretrained.released import ReleasedFolder
from qwen_jax.train.run_folder import identity
from qwen_jax.types import ScoringParams
from qwen_jax.utils.files import read_json
from qwen_jax.utils.hub import is_adapter

_TRUNK = "trunk."


def is_scoring(raw: dict[str, Any]) -> bool:
    """Returns whether a config.json is a reward model's, a run's or a released one's."""
    return layouts.has_score_head(raw) or identity(raw).training_stage == "reward_model"


def is_scoring_folder(folder: str | os.PathLike) -> bool:
    """Returns whether a folder is a reward model; an adapter of PEFT is a language model."""
    if is_adapter(folder):
        return False
    return is_scoring(read_json(pathlib.Path(folder) / "config.json", error=CheckpointError))


def trunk_specs(config: ModelConfig) -> ScoringParams:
    """Returns the specs of the weights that LoRA freezes: all but the score head."""
    return dataclasses.replace(scoring_specs(config), score=None)


class Trunk:
    """A language model's folder, read with the weight names of a scoring model."""

    def __init__(self, source: merged.Source):
        self._source = source
        self.config, self.step = source.config, source.step

    def read(self, path: str, index: Index) -> np.ndarray:
        """Reads a slice of a weight such as "trunk.layers.attention.wq"."""
        assert path.startswith(_TRUNK), path
        return self._source.read(path.removeprefix(_TRUNK), index)


def open_scoring(
    folder: str, *, param_dtype: str | None = None, step: int | None = None
) -> merged.Source:
    """Checks a folder and opens it for reading. Arguments and errors are as in open_pretrained."""
    folder = local_folder(folder)
    path = pathlib.Path(folder)
    raw = {} if is_adapter(path) else read_json(path / "config.json", error=CheckpointError)
    if layouts.has_score_head(raw):
        return ReleasedFolder(path, raw, param_dtype=param_dtype, with_score=True)
    if not is_scoring(raw):
        return Trunk(open_pretrained(folder, param_dtype=param_dtype, step=step))
    lora = merged.adapters_of(raw, path)
    if lora is None:
        return RunFolder(path, raw, param_dtype=param_dtype, step=step, specs=scoring_specs)
    base = merged.read_base(path)
    source = open_scoring(base.folder, param_dtype="float32", step=base.step)
    merged.check_base(base, source, path, trunk_specs)
    return merged.MergedRun(
        path, raw, lora, source, param_dtype=param_dtype, step=step, model_specs=scoring_specs
    )
