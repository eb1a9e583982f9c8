"""Opens a released folder for reading: its config, and any slice of our weights.

The files are memory-mapped. Slices are copied a few megabytes at a time, and pages are released
immediately, so reading needs no memory beyond the result.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from absl import logging

from qwen_jax.config import DTYPES, ModelConfig
from qwen_jax.errors import CheckpointError
from qwen_jax.model.spec import param_specs
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.pretrained.arrays import Index, cast, empty
from qwen_jax.pretrained.config_json import layout_of, read_config
from qwen_jax.pretrained.layouts import Group, Layout, scoring
from qwen_jax.pretrained.tensors import TensorFiles, bits, copy, listed

_CHUNK_BYTES = 2 << 20  # bytes of a file in memory at a time


class ReleasedFolder:
    """A validated folder in a released layout.

    Attributes:
      config: the model config; its param_dtype is the dtype of arrays that `read` returns, its
        compute_dtype that of the files.
      layout: the released layout.
      files: the TensorFiles of the folder.
      step: None; only runs have steps.
    """

    step = None

    def __init__(
        self,
        folder: pathlib.Path,
        raw: dict[str, Any],
        *,
        param_dtype: str | None = None,
        with_score: bool = False,
        progress: Callable[[int], object] = lambda size: None,
    ):
        """Checks config.json, whose content is `raw`, against the files.

        Args:
          param_dtype: dtype to cast to; None: the dtype of the files.
          with_score: whether this is a reward model, with a score head instead of an output
            projection.
          progress: called with the size in bytes of each chunk of a file after it is read.

        Raises:
          ConfigError, CheckpointError: as in load_pretrained.
        """
        self.layout = layout_of(raw, folder / "config.json")
        specs = param_specs
        if with_score:
            self.layout, specs = scoring(self.layout), scoring_specs
        fields = read_config(raw, self.layout, folder / "config.json")
        config = ModelConfig(**fields)
        self.files = TensorFiles(folder)
        groups = list(self.layout.groups(specs(config)))
        file_dtype = _check_tensors(self.files, groups, self.layout, config, folder)
        self.config = ModelConfig(
            **fields, param_dtype=param_dtype or file_dtype, compute_dtype=file_dtype
        )
        self._locations = {
            weight.path: (group, member)
            for group in groups
            for member, weight in enumerate(group.weights)
        }
        self._progress = progress

    def read(self, path: str, index: Index) -> np.ndarray:
        """Reads a slice of a weight, such as "layers.attention.wq", in config.param_dtype.

        Raises:
          CheckpointError: a value overflows that dtype.
        """
        group, member = self._locations[path]
        out = empty(tuple(part.stop - part.start for part in index), self.config.param_dtype)
        if not group.stacked:
            self._read_layer(out, group, member, group.name, index)
        else:
            for into, layer in zip(out, range(index[0].start, index[0].stop), strict=True):
                self._read_layer(into, group, member, group.name.format(layer=layer), index[1:])
        return out

    def _read_layer(
        self, into: np.ndarray, group: Group, member: int, name: str, index: Index
    ) -> None:
        weight, rows, shape = group.weights[member], group.rows(), group.layer_shapes()[member]
        first = sum(rows[:member])
        released = self.files.view(name)[first : first + rows[member]]
        ours = weight.from_released(released, shape)[index]  # a view; nothing is read yet
        step_bytes = released.nbytes // shape[weight.row_axis]
        for chunk in chunks(ours.shape, weight.row_axis, step_bytes, _CHUNK_BYTES):
            part = ours[chunk]
            if part.dtype == into.dtype:
                copy(into[chunk], part)
            else:
                fresh = np.empty(part.shape, part.dtype)
                copy(fresh, part)
                into[chunk] = cast(fresh, str(into.dtype), name)
            self.files.forget(name)
            self._progress(part.nbytes)


def chunks(shape: tuple[int, ...], axis: int, bytes_each: int, limit: int) -> list[Index]:
    """Returns indices that split `shape` along `axis` into chunks of at most `limit` bytes.

    A chunk has at least one element of the axis, which takes `bytes_each` bytes.
    """
    step = max(1, limit // max(1, bytes_each))
    full = [slice(0, size) for size in shape]
    return [
        tuple(
            slice(start, min(start + step, shape[axis])) if i == axis else part
            for i, part in enumerate(full)
        )
        for start in range(0, shape[axis], step)
    ]


def widest(dtypes: set[str], where: str) -> str:
    """Returns the common dtype, or float32 if there are several, which represents all values."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    logging.info("%s: mixed dtypes (%s), all read as float32.", where, ", ".join(sorted(dtypes)))
    return "float32"


def _check_tensors(
    files: TensorFiles,
    groups: list[Group],
    layout: Layout,
    config: ModelConfig,
    folder: pathlib.Path,
) -> str:
    """Checks the tensors in the files against the config and returns their dtype."""
    expected = {name: group.shape() for group in groups for name in group.names()}
    problems = [f"{name} is missing" for name in expected if name not in files.shapes]
    for name in sorted(set(files.shapes) - set(expected)):
        if name.endswith(layout.ignored):
            continue
        if config.tie_embeddings and name == layout.weights[-1].name:
            problems += _untied(files, layout.weights[0].name, name)
        else:
            problems.append(
                f"{name} is not part of a {layout.model_type!r} model of {config.num_layers} layers"
            )
    for name, shape in expected.items():
        found = files.shapes.get(name, shape)
        if found != shape:
            problems.append(f"{name} has shape {list(found)}, not {list(shape)}")
        elif files.dtypes.get(name, DTYPES[0]) not in DTYPES:
            problems.append(f"{name} is {files.dtypes[name]}, not one of {', '.join(DTYPES)}")
    if problems:
        raise CheckpointError(
            listed(problems, "wrong tensor"),
            str(folder),
            "use the config.json and the weight files of one checkpoint.",
        )
    return widest({files.dtypes[name] for name in expected}, str(folder))


def _untied(files: TensorFiles, embed: str, head: str) -> list[str]:
    """Returns the problem if a tied model has a head that is not bit-identical to the embedding."""
    if embed not in files.shapes:
        return []
    if files.shapes[head] == files.shapes[embed] and files.dtypes[head] == files.dtypes[embed]:
        one, other, same = bits(files.view(embed)), bits(files.view(head)), True
        for rows in chunks(one.shape, 0, one[:1].nbytes, _CHUNK_BYTES):
            same = same and np.array_equal(one[rows], other[rows])
            files.forget(embed)
            files.forget(head)
        if same:
            return []
    return [f"{head} differs from {embed}, but tie_word_embeddings is true"]
