"""The weights of one of our own run folders: read, and written as those of step 0."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qwen_jax.config import ContextExtension, ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.spec import abstract, param_specs
from qwen_jax.pretrained.arrays import Index, cast, empty
from qwen_jax.tokenizer.bpe import write_ranks
from qwen_jax.train.run_folder import Identity, identity
from qwen_jax.types import Params, TrainState
from qwen_jax.utils.files import sync_folder, write_json


def is_run(raw: dict[str, Any]) -> bool:
    """Whether a config.json is that of a run: it has the model's settings under "model"."""
    return isinstance(raw.get("model"), dict) and "model_type" not in raw


def run_config(raw: dict[str, Any], folder: pathlib.Path) -> ModelConfig:
    """The ModelConfig of a run whose config.json holds `raw`.

    Raises:
      ConfigError: it names a setting that this version does not have.
    """
    settings = raw["model"]
    extension = dict(settings.get("extension") or {})
    strange = [
        name
        for cls, given in ((ModelConfig, settings), (ContextExtension, extension))
        for name in sorted(set(given) - {field.name for field in dataclasses.fields(cls)})
    ]
    if strange:
        raise ConfigError(
            f"unknown model settings: {', '.join(strange)}.",
            str(folder / "config.json"),
            "load the run with the version of qwen_jax in its versions.json.",
        )
    if extension.get("windows") is not None:
        extension["windows"] = tuple(extension["windows"])  # JSON has no tuples
    return ModelConfig(**settings | {"extension": ContextExtension(**extension)})


class RunFolder:
    """The newest good checkpoint of a run, opened for reading; the twin of ReleasedFolder.

    Attributes:
      config: param_dtype is the dtype that pieces have.
      step: of the checkpoint.
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
        """Verifies the checkpoint of the run whose config.json holds `raw`; of PPO's the policy.

        Args:
          param_dtype: to cast to; None: as saved.
          step: of this checkpoint and no other; None: of the newest good one.
          progress: told the bytes of each piece once it is read.
          specs: of the weights that the run has; the language model's, or a scoring model's.

        Raises:
          ConfigError: config.json names a setting that this version does not have.
          CheckpointError: no checkpoint, or none that is whole.
        """
        from qwen_jax.checkpoint.parameters import open_params

        saved = run_config(raw, folder)
        self.config = dataclasses.replace(saved, param_dtype=param_dtype or saved.param_dtype)
        self.step, self._pieces = open_params(
            folder / "checkpoints",
            abstract(specs(saved), saved.param_dtype),
            step=step,
            under=identity(raw).parameters,
        )
        self._progress = progress

    def read(self, path: str, index: Index) -> np.ndarray:
        """A piece of the weight "layers.attention.wq", say: a fresh array of config.param_dtype.

        Raises:
          CheckpointError: a value is beyond the range of that dtype.
        """
        dtype = self.config.param_dtype
        whole = empty(tuple(part.stop - part.start for part in index), dtype)
        for where, piece in self._pieces(path, index):
            whole[where] = cast(piece, dtype, path)
            self._progress(piece.nbytes)
        return whole


def check_unused(folder: str | os.PathLike) -> None:
    """Raises CheckpointError unless a run can be written there."""
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            "the folder exists and is not empty.",
            str(folder),
            "choose another path; a run is never replaced.",
        )


def save_run(
    path: str | os.PathLike, config: ModelConfig, params: Params, *, tokenizer=None
) -> None:
    """A run folder of these weights, as of step 0: everything that reads a run's model reads it.

    A run begins from it with --train.init_from. The folder appears whole or not at all.

    Args:
      path: must not exist, or be empty.
      tokenizer: a Tokenizer, to write beside the checkpoints.

    Raises:
      CheckpointError: the folder is in use, or the disk too full.
    """
    from qwen_jax.checkpoint.checkpointer import Checkpointer

    folder = pathlib.Path(path).resolve()
    check_unused(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
        partial.mkdir(parents=True)
    config = dataclasses.replace(config, param_dtype=str(params.embed.dtype))
    state = TrainState(step=np.int32(0), params=params, opt_state=())
    checkpoints = Checkpointer(partial / "checkpoints", keep=1)
    try:
        checkpoints.check_space(state)
        checkpoints.save(0, state, {})
        checkpoints.close()
        if jax.process_index() == 0:
            what = Identity("pretrain", "params")._asdict()  # a language model, whoever trained it
            write_json(partial / "config.json", what | {"model": dataclasses.asdict(config)})
            if tokenizer is not None:
                write_ranks(partial / "tokenizer.tiktoken", tokenizer.mergeable_ranks)
            if folder.exists():
                folder.rmdir()
            os.rename(partial, folder)
            sync_folder(folder.parent)
    except BaseException:
        if jax.process_index() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
