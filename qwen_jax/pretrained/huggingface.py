"""Qwen checkpoints in the released layouts, both ways: `load_pretrained` and `save_pretrained`.

Weights pass one piece at a time: one device's shard when loading, a part of one layer's tensor
when saving or converting. What is called what: layouts.py.
"""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import ml_dtypes  # noqa: F401  (numpy learns the name bfloat16)
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from qwen_jax.config import DTYPES, ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError, unknown_name
from qwen_jax.model.spec import param_specs
from qwen_jax.parallel.sharding import sharding_for
from qwen_jax.pretrained.arrays import Index, cast, fetch, place
from qwen_jax.pretrained.config_json import write_config, write_generation_config
from qwen_jax.pretrained.folder import whole_folder
from qwen_jax.pretrained.from_run import RunFolder, is_run
from qwen_jax.pretrained.layouts import LAYOUTS, Group, leaf_at, unfit, unsaid
from qwen_jax.pretrained.merged import MergedRun, Source, adapters_of, check, read_base
from qwen_jax.pretrained.released import ReleasedFolder, chunks, widest
from qwen_jax.pretrained.tensors import Tensor, copy, listed, write_tensors
from qwen_jax.tokenizer.huggingface import write_tokenizer
from qwen_jax.tokenizer.model_folder import check_vocabulary
from qwen_jax.types import Params
from qwen_jax.utils.files import read_json, write_json
from qwen_jax.utils.format import format_gb

_PIECE_BYTES = 32 << 20  # of a tensor, on the host at a time
_nothing: Callable[[int], object] = lambda size: None  # noqa: E731


def load_pretrained(
    path: str | os.PathLike,
    *,
    mesh: jax.sharding.Mesh | None = None,
    param_dtype: str | None = None,
    shardings: Params | None = None,
    progress: Callable[[int], object] = _nothing,
) -> tuple[ModelConfig, Params]:
    """Reads a Qwen, Qwen1.5 or Qwen2 folder, or one of our run folders.

    Each process reads what its own devices need, one device's shard of one weight at a time:
    beside the result, memory holds no more than the largest shard.

    Args:
      path: a folder on this computer with a config.json and safetensors files, or a run folder
        (its newest good checkpoint; of a run of adapters, added to its base).
      mesh: cuts each weight over it as training does (parallel/sharding.py); None: one device.
      param_dtype: "float32", "bfloat16" or "float16" to cast to; None: as in the files, so that
        `save_pretrained` gives the same bits again.
      shardings: instead of a mesh, a Params of shardings.
      progress: told the bytes of the files as they are read.

    Returns:
      The config and the weights, jax arrays. config.param_dtype is the dtype of the weights,
      config.compute_dtype that of the files. Settings of training (dropout, remat, the attention
      back end) are not part of a released folder and have their defaults.

    Raises:
      ConfigError: an unknown model type, or a feature that this package does not implement.
      ShardingError: weights that the mesh does not divide, all listed.
      CheckpointError: files that are missing or damaged; or tensors that are missing, left over,
        of the wrong shape or quantized, all of them listed at once.
    """
    if mesh is not None and shardings is not None:
        raise ConfigError(
            "both a mesh and shardings.", "load_pretrained(mesh, shardings)", "give one of them."
        )
    source = open_pretrained(path, param_dtype=param_dtype, progress=progress)
    if mesh is not None:
        shardings = sharding_for(param_specs(source.config), mesh)
    return source.config, load_params(source, shardings)


def load_params(source: Source, shardings: Params | None = None) -> Params:
    """The weights of an opened folder, as load_pretrained loads them."""

    def load(key_path, spec) -> jax.Array:
        path = jax.tree_util.keystr(key_path).lstrip(".")
        return place(
            spec.shape,
            None if shardings is None else leaf_at(shardings, path),
            lambda index: source.read(path, index),
        )

    return jax.tree_util.tree_map_with_path(load, param_specs(source.config))


def save_pretrained(
    path: str | os.PathLike,
    config: ModelConfig,
    params: Params,
    *,
    layout: Literal["qwen", "qwen2"] = "qwen",
    tokenizer=None,
    param_dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    progress: Callable[[int], object] = _nothing,
) -> None:
    """Writes a folder in a released layout; it appears whole or not at all.

    "qwen2" is what `transformers` loads as it is; it has no dynamic NTK and no LogN, so beyond the
    training length the exported model is a plain one. "qwen" keeps both and needs the released
    modeling code to run elsewhere. Weights are fetched from their devices a part of one layer's
    tensor at a time. Where they span processes, all call this and process 0 writes.

    Args:
      path: a new or empty folder, or an earlier export, which is replaced.
      params: weights that fit `config`, of any sharding.
      tokenizer: a Tokenizer, to write its files and the ids that end a text as well.
      param_dtype: the dtype to write; None: the weights' own.
      max_shard_bytes: beyond this the weights go into numbered files with an index.
      progress: told the bytes written as they are.

    Raises:
      ConfigError: the layout cannot express the model, or the tokenizer does not fit it.
      CheckpointError: weights that do not fit the config, all listed; a folder that is not ours;
        a full disk.
    """
    _check_layout(layout, "save_pretrained(layout)")
    _check_dtype(param_dtype, "save_pretrained(param_dtype)")
    own_dtype = _check_params(params, config)
    _write(
        path,
        config,
        lambda path, index: fetch(leaf_at(params, path), index),
        layout=layout,
        tokenizer=tokenizer,
        dtype=param_dtype or own_dtype,
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )


def convert_pretrained(
    source: Source,
    path: str | os.PathLike,
    *,
    layout: Literal["qwen", "qwen2"],
    tokenizer=None,
    max_shard_bytes: int = 5 * 10**9,
    progress: Callable[[int], object] = _nothing,
) -> None:
    """An opened folder -> a released one, file to file: the model is never in memory.

    Arguments and errors are those of save_pretrained.
    """
    _check_layout(layout, "convert_pretrained(layout)")
    _write(
        path,
        source.config,
        source.read,
        layout=layout,
        tokenizer=tokenizer,
        dtype=source.config.param_dtype,
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )


def open_pretrained(
    path: str | os.PathLike,
    *,
    param_dtype: str | None = None,
    step: int | None = None,
    progress: Callable[[int], object] = _nothing,
) -> ReleasedFolder | RunFolder | MergedRun:
    """The folder, checked and opened for reading. Arguments and errors are load_pretrained's.

    Args:
      step: of a run's checkpoint; None: the newest good one.
    """
    _check_dtype(param_dtype, "param_dtype")
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            "there is no such folder.",
            str(path),
            "pass a folder on this computer; nothing is downloaded.",
        )
    raw = read_json(folder / "config.json", error=CheckpointError)
    if not is_run(raw):
        return ReleasedFolder(folder, raw, param_dtype=param_dtype, progress=progress)
    lora = adapters_of(raw, folder)
    if lora is None:
        return RunFolder(folder, raw, param_dtype=param_dtype, step=step, progress=progress)
    base = read_base(folder)
    weights = open_pretrained(base.folder, param_dtype="float32", step=base.step)
    check(base, weights, folder)
    return MergedRun(
        folder, raw, lora, weights, param_dtype=param_dtype, step=step, progress=progress
    )


def _write(
    path,
    config: ModelConfig,
    read: Callable[[str, Index], np.ndarray],
    *,
    layout: str,
    tokenizer,
    dtype: str,
    max_shard_bytes: int,
    progress: Callable[[int], object],
) -> None:
    table = LAYOUTS[layout]
    if problems := unfit(table, config):
        raise ConfigError(
            f"the {layout!r} layout cannot express {'; '.join(problems)}.",
            "layout",
            'use layout="qwen2".',
        )
    if tokenizer is not None:
        check_vocabulary(tokenizer, config, flag="tokenizer")
    if missing := unsaid(table, config):
        logging.warning(
            "the %r layout has no %s: beyond %d tokens the exported model goes without.",
            layout,
            " and no ".join(missing),
            config.context_length,
        )
    tensors = [
        tensor
        for group in table.groups(param_specs(config))
        for tensor in _tensors(group, read, dtype)
    ]
    if jax.process_index() != 0:  # helps process 0 to fetch what other processes hold
        for tensor in tensors:
            for _ in tensor.pieces():
                pass
        multihost_utils.sync_global_devices("save_pretrained")
        return
    end_of_text = tokenizer.end_of_text if tokenizer is not None else None
    im_end = tokenizer.im_end if tokenizer is not None else None
    folder = pathlib.Path(path).resolve()
    size = sum(tensor.bytes for tensor in tensors)
    with whole_folder(folder, needed_bytes=size + 64 * 10**6) as partial:
        write_json(
            partial / "config.json",
            write_config(config, table, dtype=dtype, end_of_text=end_of_text),
            indent=2,
        )
        write_json(
            partial / "generation_config.json",
            write_generation_config(table, end_of_text=end_of_text, im_end=im_end),
            indent=2,
        )
        if tokenizer is not None:
            write_tokenizer(partial, tokenizer, layout=layout, context_length=config.context_length)
        write_tensors(partial, tensors, max_shard_bytes=max_shard_bytes, progress=progress)
    logging.info("exported %s to %s (%s layout, %s).", format_gb(size), folder, layout, dtype)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("save_pretrained")


def _tensors(group: Group, read: Callable[[str, Index], np.ndarray], dtype: str) -> list[Tensor]:
    """The released tensors of a group, made piece by piece as they are written."""

    def pieces(layer: int, name: str) -> Iterator[np.ndarray]:
        for weight, shape in zip(group.weights, group.layer_shapes(), strict=True):
            axis = weight.row_axis
            step_bytes = np.dtype(dtype).itemsize * int(np.prod(shape)) // shape[axis]
            for index in chunks(shape, axis, step_bytes, _PIECE_BYTES):
                if group.stacked:
                    piece = read(weight.path, (slice(layer, layer + 1), *index))[0]
                else:
                    piece = read(weight.path, index)
                piece = weight.to_released(cast(piece, dtype, name))
                if not piece.flags.c_contiguous:
                    whole = np.empty(piece.shape, piece.dtype)
                    copy(whole, piece)
                    piece = whole
                yield piece

    return [
        Tensor(name, group.shape(), dtype, lambda layer=layer, name=name: pieces(layer, name))
        for layer, name in enumerate(group.names())
    ]


def _check_params(params: Params, config: ModelConfig) -> str:
    """The dtype of `params`, after their shapes have been compared with the config."""
    specs = jax.tree_util.tree_leaves_with_path(param_specs(config))
    found = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    problems = []
    for path, spec in specs:
        name = jax.tree_util.keystr(path)
        leaf = found.pop(name, None)
        if leaf is None:
            problems.append(f"params{name} is missing")
        elif tuple(leaf.shape) != spec.shape:
            problems.append(f"params{name} is {list(leaf.shape)} instead of {list(spec.shape)}")
        elif str(leaf.dtype) not in DTYPES:
            problems.append(f"params{name} is {leaf.dtype}, not {', '.join(DTYPES)}")
    problems += [f"params{name} is not in the config" for name in found]
    if problems:
        raise CheckpointError(
            listed(problems, "wrong weight"),
            "save_pretrained(params)",
            "pass the config that the weights were made with.",
        )
    return widest({str(leaf.dtype) for leaf in jax.tree.leaves(params)}, "params")


def _check_layout(layout: str, where: str) -> None:
    if layout not in LAYOUTS:
        raise unknown_name("layout", str(layout), LAYOUTS, where)


def _check_dtype(dtype: str | None, where: str) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", str(dtype), DTYPES, where)
