"""Reads a LoRA run (model/lora.py) as a merged model, W + alpha / rank A B, in chunks.

The run's checkpoints contain only the adapters; base.json in its folder identifies the base model.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from qwen_jax.config import DTYPES, ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.lora import FULLY_TRAINED, Adapter, LoRAConfig, delta, input_axes, lora_specs
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.arrays import Index, cast, empty
from qwen_jax.pretrained.from_run import RunFolder, run_config
from qwen_jax.pretrained.released import chunks
from qwen_jax.utils.files import read_json

NAME = "base.json"
_RESTORE = "restore the file that the run wrote."
Specs = Callable[[ModelConfig], Any]
_CHUNK_BYTES = 32 << 20  # bytes of float32 held on the host at a time


class Source(Protocol):
    """A folder opened for reading: a released folder, a run, or a LoRA run."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def step(self) -> int | None:
        """The step of a run's checkpoint; None for a released folder."""

    def read(self, path: str, index: Index) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Base:
    """The base model that adapters were trained on."""

    folder: str  # absolute path
    step: int | None  # step of the run's checkpoint; None for a released folder
    dtype: str  # dtype of its weights in training
    sample: str  # SHA-256 of a sample of its weights in that dtype


def identify(folder: str | os.PathLike, source: Source, specs: Specs = param_specs) -> Base:
    """Returns the Base of `source`, which is `folder` opened in the training dtype.

    Args:
      specs: returns the specs of the frozen weights.
    """
    dtype = source.config.param_dtype
    return Base(
        str(pathlib.Path(folder).resolve()), source.step, dtype, sample(source, dtype, specs)
    )


def check_base(base: Base, source: Source, where: pathlib.Path, specs: Specs = param_specs) -> None:
    """Raises CheckpointError unless `source` has the same weights as `base`."""
    if sample(source, base.dtype, specs) != base.sample:
        raise CheckpointError(
            "the weights of the base model have changed since these adapters were trained: "
            f"{base.folder}.",
            str(where),
            "restore the original weights; adapters work only with their own base.",
        )


def read_base(folder: pathlib.Path, name: str = NAME, *, now_at: str | None = None) -> Base:
    """Reads the Base of the LoRA run in a folder.

    Args:
      name: name of the file that records the base.
      now_at: path of the base, which may have moved; None: as recorded.

    Raises:
      CheckpointError: the file, or the folder that it names, is missing or corrupted.
    """
    where = folder / name
    if not where.is_file():
        raise CheckpointError(
            "the file that records the base model of these adapters is missing.",
            str(where),
            f"copy the run together with its {name}.",
        )
    record = read_json(where, error=CheckpointError)
    if set(record) != {field.name for field in dataclasses.fields(Base)}:
        raise CheckpointError(
            f"the record of the base model has the wrong keys: {', '.join(sorted(record))[:400]}.",
            str(where),
            _RESTORE,
        )
    base = Base(**record)
    step_ok = base.step is None or type(base.step) is int and base.step >= 0
    strings = all(isinstance(text, str) for text in (base.folder, base.dtype, base.sample))
    if not (step_ok and strings and base.dtype in DTYPES):
        raise CheckpointError(
            "the record of the base model has a value of the wrong type.",
            str(where),
            _RESTORE,
        )
    if now_at is not None:
        base = dataclasses.replace(base, folder=str(pathlib.Path(now_at).resolve()))
    if not pathlib.Path(base.folder).is_dir():
        raise CheckpointError(
            f"the base model of these adapters is missing: {base.folder}.",
            str(where),
            "move it back, or set its new path in this file.",
        )
    _check_no_cycle(folder, name)
    return base


def _check_no_cycle(folder: pathlib.Path, name: str) -> None:
    """Raises CheckpointError if a chain of adapters on adapters leads back to itself."""
    seen, here = set(), folder.resolve()
    while (here / name).is_file():
        if here in seen:
            raise CheckpointError(
                f"the base model of these adapters is in the end itself: {here}.",
                str(folder / name),
                _RESTORE,
            )
        seen.add(here)
        here = pathlib.Path(str(read_json(here / name, error=CheckpointError).get("folder")))
        here = here.resolve()


def adapters_of(raw: dict[str, Any], folder: pathlib.Path) -> LoRAConfig | None:
    """Returns the LoRA config of a run whose config.json contains `raw`; None: full fine-tuning.

    Raises:
      ConfigError: config.json has a setting unknown to this version, or an invalid one.
    """
    settings: dict[str, Any] = raw.get("lora") or {}
    where = str(folder / "config.json")
    if not isinstance(settings, dict):
        raise ConfigError("lora is not a JSON object.", where, _RESTORE)
    if settings.get("rank") is None:
        return None
    known = {field.name for field in dataclasses.fields(LoRAConfig)}
    if unknown := sorted(set(settings) - known):
        raise ConfigError(
            f"unknown LoRA settings: {', '.join(unknown)[:400]}.",
            where,
            "load the run with the version of qwen_jax in its versions.json.",
        )
    if isinstance(targets := settings.get("targets"), list):
        settings = settings | {"targets": tuple(targets)}  # JSON has no tuples
    try:
        return LoRAConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{error.where}: {error.what}", where, _RESTORE) from None


class MergedRun:
    """The latest valid checkpoint of a LoRA run, merged into its base; reads like RunFolder.

    Attributes:
      config: the model config; its param_dtype is the dtype of arrays that `read` returns.
      step: the step of the adapters' checkpoint.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        raw: dict[str, Any],
        lora: LoRAConfig,
        base: Source,
        *,
        param_dtype: str | None = None,
        step: int | None = None,
        progress: Callable[[int], object] = lambda size: None,
        model_specs: Specs = param_specs,
    ):
        """
        Args:
          base: the base model, opened in float32, the dtype of the sums.
          param_dtype: dtype to cast to; None: the dtype of the adapters.
          step, progress: as in RunFolder.
          model_specs: returns the specs of the merged model, a language model or a scoring model.
        """
        saved = run_config(raw, folder)
        self.config = dataclasses.replace(saved, param_dtype=param_dtype or saved.param_dtype)
        self._adapters = RunFolder(
            folder,
            raw,
            param_dtype="float32",
            step=step,
            specs=lambda config: lora_specs(config, lora, model_specs),
        )
        self.step = self._adapters.step
        self._lora, self._base, self._progress = lora, base, progress

    def read(self, path: str, index: Index) -> np.ndarray:
        """Reads a slice of a weight, such as "layers.attention.wq", in config.param_dtype.

        Raises:
          CheckpointError: a value overflows that dtype.
        """
        shape = tuple(part.stop - part.start for part in index)
        out = empty(shape, self.config.param_dtype)
        row_bytes = 4 * out[:1].size
        for rows in chunks(shape, 0, row_bytes, _CHUNK_BYTES):
            first = slice(index[0].start + rows[0].start, index[0].start + rows[0].stop)
            merged = self._merge(path, (first, *index[1:]))
            out[rows] = cast(merged, self.config.param_dtype, path)
            self._progress(out[rows].nbytes)
        return out

    def _merge(self, path: str, index: Index) -> np.ndarray:
        name = path.rpartition(".")[2]
        if name in FULLY_TRAINED:
            return self._adapters.read(path, index)
        weight = self._base.read(path, index)
        if name in self._lora.targets:
            inputs, rank = 1 + input_axes(name), slice(0, self._lora.rank)
            a = self._adapters.read(f"{path}.a", (*index[:inputs], rank))
            b = self._adapters.read(f"{path}.b", (index[0], rank, *index[inputs:]))
            weight += delta(Adapter(a, b), self._lora.scale)
        return weight


def sample(source: Source, dtype: str, specs: Specs = param_specs) -> str:
    """Returns the SHA-256 of the first row of every weight; for stacked weights, of two layers.

    The two layers are the first and the last. This is enough to distinguish two trained models, and
    fast to read.
    """
    digest = hashlib.sha256()
    for key_path, spec in jax.tree_util.tree_leaves_with_path(specs(source.config)):
        path = jax.tree_util.keystr(key_path).lstrip(".")
        stacked = spec.axes[0] == "layers"
        for start in sorted({0, spec.shape[0] - 1}) if stacked else [0]:
            index = [slice(start, start + 1), *(slice(0, size) for size in spec.shape[1:])]
            if stacked and len(index) > 2:
                index[1] = slice(0, 1)
            part = cast(source.read(path, tuple(index)), dtype, path)
            digest.update(f"{path} {start} {part.shape} {dtype}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
