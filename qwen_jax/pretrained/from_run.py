"""Reads the weights of a run folder, and writes weights as a new run at step 0."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.spec import abstract, param_specs
from qwen_jax.pretrained.arrays import Index, cast, empty
from qwen_jax.tokenizer.carry import save_tokenizer
from qwen_jax.train.attempts.carried import write_released
from qwen_jax.train.run_folder import Identity, identity
from qwen_jax.types import Params, TrainState
from qwen_jax.utils.files import read_json, sync_folder, write_json

_RESTORE = "restore the file that the run wrote."


def is_run(raw: dict[str, Any]) -> bool:
    """Returns whether a config.json is a run's, which has the model settings under "model"."""
    return isinstance(raw.get("model"), dict) and "model_type" not in raw


def training_stage(folder: str | os.PathLike) -> str | None:
    """Returns the training stage of a run folder; None for other folders."""
    path = pathlib.Path(folder) / "config.json"
    raw = read_json(path) if path.exists() else None
    return identity(raw).training_stage if isinstance(raw, dict) and is_run(raw) else None


def run_config(raw: dict[str, Any], folder: pathlib.Path) -> ModelConfig:
    """Returns the ModelConfig of a run whose config.json contains `raw`.

    Raises:
      ConfigError: config.json has a setting unknown to this version, or an invalid one.
    """
    where = str(folder / "config.json")
    try:
        return _from_json(ModelConfig, raw["model"], "model", where)
    except ConfigError as error:
        if error.where == where:
            raise
        raise ConfigError(f"{error.where}: {error.what}", where, _RESTORE) from None


def _from_json(config: type, given: Any, name: str, where: str) -> Any:
    """Returns a config dataclass, and those in its fields, from a JSON object.

    Args:
      name: the section, such as "model.extension", named in errors.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"{name} is not a JSON object.", where, _RESTORE)
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    if unknown := sorted(given.keys() - fields.keys()):
        raise ConfigError(
            f"unknown {name} settings: {', '.join(unknown)[:400]}.",
            where,
            "load the run with the version of qwen_jax in its versions.json.",
        )
    if missing := [
        key for key in fields if fields[key] is dataclasses.MISSING and key not in given
    ]:
        raise ConfigError(f"config.json has no {', '.join(missing)}.", where, _RESTORE)
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    for key, default in fields.items():
        if dataclasses.is_dataclass(default):
            values[key] = _from_json(type(default), given.get(key) or {}, f"{name}.{key}", where)
    return config(**values)


class RunFolder:
    """The latest valid checkpoint of a run, opened for reading like a ReleasedFolder.

    Attributes:
      config: the model config; its param_dtype is the dtype of arrays that `read` returns.
      step: the step of the checkpoint.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        raw: dict[str, Any],
        *,
        param_dtype: str | None = None,
        step: int | None = None,
        progress: Callable[[int], object] = lambda size: None,
        specs: Callable[[ModelConfig], Any] = param_specs,
    ):
        """Verifies the checkpoint of a run, whose config.json contains `raw`; for PPO, the policy.

        Args:
          param_dtype: dtype to cast to; None: as saved.
          step: the step of the checkpoint to read; None: the latest valid one.
          progress: called with the size in bytes of each chunk after it is read.
          specs: returns the parameter specs of the run, a language model or a scoring model.

        Raises:
          ConfigError: config.json has a setting unknown to this version.
          CheckpointError: no complete checkpoint is found, or the run is that of a reward model.
        """
        from qwen_jax.checkpoint.parameters import open_params

        if specs is param_specs and identity(raw).training_stage == "reward_model":
            raise CheckpointError(
                "this is the run of a reward model, which scores text and writes none.",
                str(folder),
                "pass a run of pretrain, sft, dpo, ppo or grpo.",
            )
        saved = run_config(raw, folder)
        self.config = dataclasses.replace(saved, param_dtype=param_dtype or saved.param_dtype)
        self.step, self._read_chunks = open_params(
            folder / "checkpoints",
            abstract(specs(saved), saved.param_dtype),
            step=step,
            under=identity(raw).parameters,
        )
        self._progress = progress

    def read(self, path: str, index: Index) -> np.ndarray:
        """Reads a slice of a weight, such as "layers.attention.wq", in config.param_dtype.

        Raises:
          CheckpointError: a value overflows that dtype.
        """
        dtype = self.config.param_dtype
        out = empty(tuple(part.stop - part.start for part in index), dtype)
        for where, chunk in self._read_chunks(path, index):
            out[where] = cast(chunk, dtype, path)
            self._progress(chunk.nbytes)
        return out


def check_unused(folder: str | os.PathLike) -> None:
    """Raises CheckpointError unless `folder` is missing or empty."""
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            "the folder exists and is not empty.",
            str(folder),
            "choose another path; a run is never replaced.",
        )


def save_run(
    path: str | os.PathLike,
    config: ModelConfig,
    params: Params,
    *,
    tokenizer=None,
    released: Mapping[str, bytes] | None = None,
) -> None:
    """Writes these weights as a run folder at step 0, readable like any other run.

    Training can start from it with --init_from. The folder is written atomically.

    Args:
      path: a new or empty folder.
      tokenizer: a Tokenizer to save in the folder; None: no tokenizer.
      released: settings of the released model, for an export of the run; from read_released.

    Raises:
      CheckpointError: the folder is not empty, or there is too little disk space.
    """
    from qwen_jax.checkpoint.checkpointer import Checkpointer

    folder = pathlib.Path(path).resolve()
    check_unused(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed conversion
        partial.mkdir(parents=True)
    config = dataclasses.replace(config, param_dtype=str(params.embed.dtype))
    state = TrainState(step=np.int32(0), params=params, opt_state=())
    checkpoints = Checkpointer(partial / "checkpoints", keep=1)
    try:
        checkpoints.check_space(state)
        checkpoints.save(0, state, {})
        checkpoints.close()
        if jax.process_index() == 0:
            record = Identity("pretrain", "params")._asdict()  # valid for any language model
            write_json(partial / "config.json", record | {"model": dataclasses.asdict(config)})
            if tokenizer is not None:
                save_tokenizer(partial, tokenizer)
            write_released(partial, released or {})
            if folder.exists():
                folder.rmdir()
            os.rename(partial, folder)
            sync_folder(folder.parent)
    except BaseException:
        if jax.process_index() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
