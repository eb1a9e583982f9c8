"""A run of adapters (model/lora.py) read as the model that it is: W + alpha / rank A B, by pieces.

Its checkpoints hold the adapters alone; base.json in its folder says what they stand beside.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.lora import IN_FULL, Adapter, LoRAConfig, delta, input_axes, lora_specs
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.arrays import Index, cast, empty
from qwen_jax.pretrained.from_run import RunFolder, run_config
from qwen_jax.pretrained.released import chunks
from qwen_jax.utils.files import read_json

NAME = "base.json"
Specs = Callable[[ModelConfig], Any]
_PIECE_BYTES = 32 << 20  # of float32, on the host at a time


class Source(Protocol):
    """A folder opened for reading: released, a run, or a run of adapters."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def step(self) -> int | None:
        """Of a run's checkpoint."""

    def read(self, path: str, index: Index) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Base:
    """What adapters were trained beside."""

    folder: str  # absolute
    step: int | None  # of a run; None: a released folder has none
    dtype: str  # that it had in training
    sample: str  # SHA-256 of some of its weights in that dtype


def identify(folder: str | os.PathLike, source: Source, specs: Specs = param_specs) -> Base:
    """The Base that `source` is, opened from `folder` in the dtype that it has in training.

    Args:
      specs: of the weights that stay as they are.
    """
    dtype = source.config.param_dtype
    return Base(
        str(pathlib.Path(folder).resolve()), source.step, dtype, _sample(source, dtype, specs)
    )


def check(base: Base, source: Source, where: pathlib.Path, specs: Specs = param_specs) -> None:
    """Raises CheckpointError unless `source` has the weights that `base` had."""
    if _sample(source, base.dtype, specs) != base.sample:
        raise CheckpointError(
            "the base of these adapters has other weights than it had when they "
            f"were trained: {base.folder}.",
            str(where),
            "put the old weights back; adapters fit no others.",
        )


def read_base(folder: pathlib.Path, name: str = NAME) -> Base:
    """The Base of the run of adapters in a folder.

    Args:
      name: of the file that says so.

    Raises:
      CheckpointError: that file or the folder that it names is not there.
    """
    where = folder / name
    if not where.is_file():
        raise CheckpointError(
            "nothing says what these adapters stand beside.",
            str(where),
            f"copy a run with its {name}.",
        )
    record = read_json(where, error=CheckpointError)
    if set(record) != {field.name for field in dataclasses.fields(Base)}:
        raise CheckpointError(
            f"it does not say what adapters stand beside: {sorted(record)}.",
            str(where),
            "put it back as the run wrote it.",
        )
    base = Base(**record)
    if not pathlib.Path(base.folder).is_dir():
        raise CheckpointError(
            f"the base of these adapters is not there: {base.folder}.",
            str(where),
            "put it back, or write its new place into this file.",
        )
    return base


def adapters_of(raw: dict[str, Any], folder: pathlib.Path) -> LoRAConfig | None:
    """The adapters of a run whose config.json holds `raw`; None: it trained the weights themselves.

    Raises:
      ConfigError: config.json names a setting that this version does not have.
    """
    settings = raw.get("lora") or {}
    if settings.get("rank") is None:
        return None
    known = {field.name for field in dataclasses.fields(LoRAConfig)}
    if strange := sorted(set(settings) - known):
        raise ConfigError(
            f"unknown settings of adapters: {', '.join(strange)}.",
            str(folder / "config.json"),
            "load the run with the version of qwen_jax in its versions.json.",
        )
    return LoRAConfig(**{**settings, "targets": tuple(settings["targets"])})


class MergedRun:
    """The newest good checkpoint of a run of adapters and its base; a twin of RunFolder.

    Attributes:
      config: param_dtype is the dtype that pieces have.
      step: of the adapters' checkpoint.
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
        whole: Specs = param_specs,
    ):
        """
        Args:
          base: opened in float32, in which the sums are made.
          whole: of the model: the language model's, or a scoring model's.
          param_dtype, step, progress: as RunFolder's; None: the dtype that the adapters have.
        """
        saved = run_config(raw, folder)
        self.config = dataclasses.replace(saved, param_dtype=param_dtype or saved.param_dtype)
        self._adapters = RunFolder(
            folder,
            raw,
            param_dtype="float32",
            step=step,
            specs=lambda config: lora_specs(config, lora, whole),
        )
        self.step = self._adapters.step
        self._lora, self._base, self._progress = lora, base, progress

    def read(self, path: str, index: Index) -> np.ndarray:
        """A piece of the weight "layers.attention.wq", say: a fresh array of config.param_dtype.

        Raises:
          CheckpointError: a value is beyond the range of that dtype.
        """
        shape = tuple(part.stop - part.start for part in index)
        whole = empty(shape, self.config.param_dtype)
        row_bytes = 4 * whole[:1].size
        for rows in chunks(shape, 0, row_bytes, _PIECE_BYTES):
            first = slice(index[0].start + rows[0].start, index[0].start + rows[0].stop)
            piece = self._sum(path, (first, *index[1:]))
            whole[rows] = cast(piece, self.config.param_dtype, path)
            self._progress(whole[rows].nbytes)
        return whole

    def _sum(self, path: str, index: Index) -> np.ndarray:
        name = path.rpartition(".")[2]
        if name in IN_FULL:
            return self._adapters.read(path, index)
        piece = self._base.read(path, index)
        if name in self._lora.targets:
            inputs, rank = 1 + input_axes(name), slice(0, self._lora.rank)
            a = self._adapters.read(f"{path}.a", (*index[:inputs], rank))
            b = self._adapters.read(f"{path}.b", (index[0], rank, *index[inputs:]))
            piece += delta(Adapter(a, b), self._lora.scale)
        return piece


def _sample(source: Source, dtype: str, specs: Specs) -> str:
    """SHA-256 of the first row of every weight, of stacked ones in the first and the last layer.

    Enough to tell two trained models apart, and read in no time.
    """
    digest = hashlib.sha256()
    for key_path, spec in jax.tree_util.tree_leaves_with_path(specs(source.config)):
        path = jax.tree_util.keystr(key_path).lstrip(".")
        stacked = spec.axes[0] == "layers"
        for start in sorted({0, spec.shape[0] - 1}) if stacked else [0]:
            index = [slice(start, start + 1), *(slice(0, size) for size in spec.shape[1:])]
            if stacked and len(index) > 2:
                index[1] = slice(0, 1)
            piece = cast(source.read(path, tuple(index)), dtype, path)
            digest.update(f"{path} {start} {piece.shape} {dtype}".encode())
            digest.update(np.ascontiguousarray(piece).tobytes())
    return digest.hexdigest()
