"""Qwen checkpoints in the released layouts, both ways: `load_pretrained` and `save_pretrained`.

Weights pass one group of tensors at a time (all layers' gates, say), so beside the model there is
never more than one stacked weight in memory. What is called what: layouts.py.
"""

import os
import pathlib
from typing import Any, Literal

import jax
import ml_dtypes  # noqa: F401  (numpy learns the name bfloat16)
import numpy as np
from absl import logging

from qwen_jax.config import DTYPES, ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError, unknown_name
from qwen_jax.export.config_json import (
    layout_of,
    read_config,
    write_config,
    write_generation_config,
)
from qwen_jax.export.folder import whole_folder
from qwen_jax.export.layouts import LAYOUTS, Group, Layout, leaf_at, unfit
from qwen_jax.export.run_folder import is_run, load_run
from qwen_jax.export.tensors import (
    Tensor,
    TensorFiles,
    bits,
    copy,
    listed,
    read_json,
    write_json,
    write_tensors,
)
from qwen_jax.export.tokenizer_files import write_tokenizer
from qwen_jax.model.spec import param_specs
from qwen_jax.types import Params


def load_pretrained(path: str | os.PathLike, *, param_dtype: str | None = None,
                    shardings: Params | None = None) -> tuple[ModelConfig, Params]:
    """Reads a Qwen, Qwen1.5 or Qwen2 folder, or one of our run folders.

    Args:
      path: a folder on this computer with a config.json and safetensors files, or a run folder
        (its newest good checkpoint).
      param_dtype: "float32", "bfloat16" or "float16" to cast to; None: as in the files, so that
        `save_pretrained` gives the same bits again.
      shardings: a Params of shardings, to place each weight as it is read; None: the default
        device.

    Returns:
      The config and the weights, jax arrays. config.param_dtype is the dtype of the weights,
      config.compute_dtype that of the files. Settings of training (dropout, remat, the attention
      back end) are not part of a released folder and have their defaults.

    Raises:
      ConfigError: an unknown model type, or a feature that this package does not implement.
      CheckpointError: files that are missing or damaged; or tensors that are missing, left over,
        of the wrong shape or quantised, all of them listed at once.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise CheckpointError("there is no such folder.", str(path),
                              "pass a folder on this computer; nothing is downloaded.")
    _check_dtype(param_dtype, "load_pretrained(param_dtype)")
    raw = read_json(folder / "config.json")
    if is_run(raw):
        return load_run(folder, raw, param_dtype=param_dtype, shardings=shardings)
    layout = layout_of(raw, folder / "config.json")
    fields = read_config(raw, layout, folder / "config.json")
    config = ModelConfig(**fields)
    with TensorFiles(folder) as files:
        groups = list(layout.groups(param_specs(config)))
        file_dtype = _check_tensors(files, groups, layout, config, folder)
        param_dtype = param_dtype or file_dtype
        config = ModelConfig(**fields, param_dtype=param_dtype, compute_dtype=file_dtype)
        leaves = {}
        for group in groups:
            for weight, array in zip(group.weights, _read(files, group, param_dtype), strict=True):
                where = None if shardings is None else leaf_at(shardings, weight.path)
                # Waiting keeps one host copy alive instead of all of them.
                leaves[weight.path] = jax.block_until_ready(jax.device_put(array, where))
    return config, _params_of(leaves, config)


def save_pretrained(path: str | os.PathLike, config: ModelConfig, params: Params, *,
                    layout: Literal["qwen", "qwen2"] = "qwen", tokenizer=None,
                    param_dtype: str | None = None, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes a folder in a released layout; it appears whole or not at all.

    "qwen2" is what `transformers` loads as it is; it has no dynamic NTK and no LogN, so beyond the
    training length the exported model is a plain one. "qwen" keeps both and needs the released
    modelling code to run elsewhere.

    Args:
      path: a new or empty folder, or an earlier export, which is replaced.
      params: weights that fit `config`.
      tokenizer: a Tokenizer, to write its files and the ids that end a text as well.
      param_dtype: the dtype to write; None: the weights' own.
      max_shard_bytes: beyond this the weights go into numbered files with an index.

    Raises:
      ConfigError: the layout cannot express the model, or the tokenizer does not fit it.
      CheckpointError: weights that do not fit the config, all listed; a folder that is not ours;
        a full disk.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", str(layout), LAYOUTS, "save_pretrained(layout)")
    table = LAYOUTS[layout]
    _check_dtype(param_dtype, "save_pretrained(param_dtype)")
    if problems := unfit(table, config):
        raise ConfigError(f"the {layout!r} layout cannot express {'; '.join(problems)}.",
                          "save_pretrained(layout)", 'use layout="qwen2".')
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size} rows.",
            "save_pretrained(tokenizer)", "pass the tokenizer that the model was trained with.")
    if layout == "qwen2" and (config.extension.dynamic_ntk or config.extension.logn):
        logging.warning("the Qwen2 layout has no dynamic NTK and no LogN: beyond %d tokens the "
                        "exported model is a plain one.", config.context_length)
    own_dtype = _check_params(params, config)
    dtype = param_dtype or own_dtype
    tensors = [tensor for group in table.groups(param_specs(config))
               for tensor in _tensors(group, params, dtype)]
    end_of_text = tokenizer.end_of_text if tokenizer is not None else None
    im_end = tokenizer.im_end if tokenizer is not None else None
    folder = pathlib.Path(path).resolve()
    size = sum(tensor.bytes for tensor in tensors)
    with whole_folder(folder, needed_bytes=size + 64 * 10**6) as partial:
        write_json(partial / "config.json",
                   write_config(config, table, dtype=dtype, end_of_text=end_of_text))
        write_json(partial / "generation_config.json",
                   write_generation_config(table, end_of_text=end_of_text, im_end=im_end))
        if tokenizer is not None:
            write_tokenizer(partial, tokenizer, layout=layout,
                            context_length=config.context_length)
        write_tensors(partial, tensors, max_shard_bytes=max_shard_bytes)
    logging.info("exported %.3g GB to %s (%s layout, %s).", size / 1e9, folder, layout, dtype)


def _check_tensors(files: TensorFiles, groups: list[Group], layout: Layout, config: ModelConfig,
                   folder: pathlib.Path) -> str:
    """The dtype of the files, after all that may be wrong with them has been looked for."""
    expected = {name: group.shape() for group in groups for name in group.names()}
    problems = [f"{name} is missing" for name in expected if name not in files.shapes]
    for name in sorted(set(files.shapes) - set(expected)):
        if name.endswith(layout.ignored):
            continue
        if config.tie_embeddings and name == layout.weights[-1].name:
            problems += _untied(files, layout.weights[0].name, name)
        else:
            problems.append(f"{name} is not part of a {layout.model_type!r} model of "
                            f"{config.num_layers} layers")
    for name, shape in expected.items():
        found = files.shapes.get(name, shape)
        if found != shape:
            problems.append(f"{name} is {list(found)} instead of {list(shape)}")
        elif files.dtypes.get(name, DTYPES[0]) not in DTYPES:
            problems.append(f"{name} is {files.dtypes[name]}, not {', '.join(DTYPES)}")
    if problems:
        raise CheckpointError(listed(problems, "wrong tensor"), str(folder),
                              "use a config.json and weight files that belong together.")
    return _widest({files.dtypes[name] for name in expected}, str(folder))


def _untied(files: TensorFiles, embed: str, head: str) -> list[str]:
    """Some files hold a tied head all the same; it must be the embedding bit for bit."""
    if embed not in files.shapes:
        return []
    if files.shapes[head] == files.shapes[embed] and files.dtypes[head] == files.dtypes[embed]:
        rows, step = files.shapes[head][0], 16384
        if all(np.array_equal(bits(files.rows(head, row, min(row + step, rows))),
                              bits(files.rows(embed, row, min(row + step, rows))))
               for row in range(0, rows, step)):
            return []
    return [f"{head} differs from {embed}, though tie_word_embeddings says that they are one"]


def _read(files: TensorFiles, group: Group, dtype: str) -> list[np.ndarray]:
    """The weights that a group of released tensors is made of, stacked over the layers."""
    arrays = [np.empty(spec.shape, np.dtype(dtype)) for spec in group.specs]
    for layer, name in enumerate(group.names()):
        start = 0
        for weight, array, shape, rows in zip(group.weights, arrays, group.layer_shapes(),
                                              group.rows(), strict=True):
            piece = weight.from_released(files.rows(name, start, start + rows), shape)
            start += rows
            into = array[layer] if group.stacked else array
            copy(into, _cast(piece, dtype, name))
    return arrays


def _tensors(group: Group, params: Params, dtype: str) -> list[Tensor]:
    """The released tensors of a group, made one by one as they are written."""
    host: dict[str, np.ndarray] = {}  # the group's weights, fetched once, dropped with its last

    def make(layer: int, last: bool) -> np.ndarray:
        if not host:
            host.update({w.path: np.asarray(leaf_at(params, w.path)) for w in group.weights})
        whole, start = np.empty(group.shape(), np.dtype(dtype)), 0
        for weight, rows in zip(group.weights, group.rows(), strict=True):
            array = host[weight.path][layer] if group.stacked else host[weight.path]
            array = _cast(array, dtype, group.name.format(layer=layer))
            copy(whole[start:start + rows], weight.to_released(array))
            start += rows
        if last:
            host.clear()
        return whole

    names = group.names()
    return [Tensor(name, group.shape(), dtype,
                   lambda layer=layer: make(layer, layer == len(names) - 1))
            for layer, name in enumerate(names)]


def _cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    if array.dtype == np.dtype(dtype):
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(np.dtype(dtype))
    if np.isfinite(array).all() and not np.isfinite(cast).all():
        raise CheckpointError(f"{name} has values beyond the range of {dtype}.", "param_dtype",
                              "use bfloat16 or float32.")
    return cast


def _check_params(params: Params, config: ModelConfig) -> str:
    """The dtype of `params`, after their shapes have been compared with the config."""
    specs = jax.tree_util.tree_leaves_with_path(param_specs(config))
    found = {jax.tree_util.keystr(path): leaf
             for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
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
        raise CheckpointError(listed(problems, "wrong weight"), "save_pretrained(params)",
                              "pass the config that the weights were made with.")
    return _widest({str(leaf.dtype) for leaf in jax.tree.leaves(params)}, "params")


def _widest(dtypes: set[str], where: str) -> str:
    """The one dtype, or float32, which holds the values of all."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    logging.info("%s: weights of %s are all taken as float32.", where, ", ".join(sorted(dtypes)))
    return "float32"


def _check_dtype(dtype: str | None, where: str) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", str(dtype), DTYPES, where)


def _params_of(leaves: dict[str, Any], config: ModelConfig) -> Params:
    specs = param_specs(config)
    treedef = jax.tree.structure(specs)
    paths = [jax.tree_util.keystr(path).lstrip(".")
             for path, _ in jax.tree_util.tree_leaves_with_path(specs)]
    return jax.tree.unflatten(treedef, [leaves[path] for path in paths])
