"""Loads and saves Qwen checkpoints in the released layouts.

Weights are transferred in parts: one device's shard when loading, a chunk of one layer's tensor
when saving or converting. The names of tensors and settings are in layouts.py.
"""

import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)

from qwen_jax.checkpoint.bucket.reader import local_folder
from qwen_jax.checkpoint.step_lock import read_latest
from qwen_jax.config import DTYPES, ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError, unknown_name
from qwen_jax.model.spec import param_specs
from qwen_jax.model.value_head import scoring_specs
from qwen_jax.parallel.sharding import sharding_for
from qwen_jax.pretrained.adapters.merged import (
    MergedRun,
    Source,
    adapters_of,
    check_base,
    read_base,
)
from qwen_jax.pretrained.adapters.peft import PeftFolder
from qwen_jax.pretrained.arrays import fetch, load_sharded
from qwen_jax.pretrained.export.write import Export, write_folder
from qwen_jax.pretrained.finite import FiniteCheck
from qwen_jax.pretrained.from_run import RunFolder, is_run
from qwen_jax.pretrained.layouts import (
    LAYOUTS,
    LayoutName,
    has_score_head,
    leaf_at,
    scoring,
)
from qwen_jax.pretrained.released import ReleasedFolder, widest
from qwen_jax.pretrained.tensors import listed, shard_bytes
from qwen_jax.train.attempts.carried import read_released
from qwen_jax.types import Params
from qwen_jax.utils.files import read_json
from qwen_jax.utils.hub import adapter_base, is_adapter

_nothing: Callable[[int], object] = lambda size: None  # noqa: E731


def load_pretrained(
    path: str | os.PathLike,
    *,
    mesh: jax.sharding.Mesh | None = None,
    param_dtype: str | None = None,
    shardings: Params | None = None,
    allow_nonfinite: bool = False,
    progress: Callable[[int], object] = _nothing,
) -> tuple[ModelConfig, Params]:
    """Loads a folder of a dense Qwen to Qwen3 model, or a run folder.

    Each process reads only what its devices need, one device's shard of one weight at a time.
    Besides the result, host memory holds at most the largest shard.

    Args:
      path: a local folder with config.json and safetensors files, or a run folder. For a run, the
        latest valid checkpoint is loaded; LoRA adapters are merged into their base.
      mesh: the mesh to shard each weight over as in training (parallel/sharding.py); None: one
        device.
      param_dtype: dtype to cast to: "float32", "bfloat16" or "float16"; None: the dtype of the
        files, which `save_pretrained` reproduces bit for bit.
      shardings: a Params of shardings, instead of a mesh.
      allow_nonfinite: whether to accept weights with NaN or infinity.
      progress: called with the number of bytes of each chunk that is read.

    Returns:
      The config and the weights as jax arrays. config.param_dtype is the dtype of the weights,
      config.compute_dtype that of the files. Training settings (dropout, remat, the attention
      backend) are not part of a released folder and have their defaults.

    Raises:
      ConfigError: the model type is unknown, or a feature is not implemented here.
      ShardingError: the mesh does not divide some weights; the error lists all of them.
      CheckpointError: files are missing or corrupted, or tensors are missing, unexpected, misshapen
        or quantized, or have NaN or infinity; the error lists all of them.
    """
    if mesh is not None and shardings is not None:
        raise ConfigError(
            "both a mesh and shardings are set.",
            "load_pretrained(mesh, shardings)",
            "pass only one of them.",
        )

    def load() -> tuple[ModelConfig, Params]:
        source = open_pretrained(path, param_dtype=param_dtype, progress=progress)
        given = shardings if mesh is None else sharding_for(param_specs(source.config), mesh)
        return source.config, load_params(
            source, given, where=str(path), allow_nonfinite=allow_nonfinite
        )

    return read_latest(load)


def load_params(
    source: Source,
    shardings: Params | None = None,
    *,
    where: str,
    allow_nonfinite: bool = False,
) -> Params:
    """Loads the weights of an opened folder, as load_pretrained does; errors name `where`."""
    finite = FiniteCheck(where, allow=allow_nonfinite)
    read = finite.watch(source.read)

    def load(key_path, spec) -> jax.Array:
        path = jax.tree_util.keystr(key_path).lstrip(".")
        return load_sharded(
            spec.shape,
            None if shardings is None else leaf_at(shardings, path),
            lambda index: read(path, index),
        )

    params = jax.tree_util.tree_map_with_path(load, param_specs(source.config))
    finite.check()
    return params


def save_pretrained(
    path: str | os.PathLike,
    config: ModelConfig,
    params: Params,
    *,
    layout: LayoutName = "qwen",
    tokenizer=None,
    param_dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    like: str | os.PathLike | None = None,
    allow_nonfinite: bool = False,
    progress: Callable[[int], object] = _nothing,
) -> None:
    """Saves a folder in a released layout, atomically.

    `transformers` loads "qwen2" and "qwen3" (QK-norm and no QKV bias) natively. These layouts have
    no dynamic NTK and no LogN, so the exported model does not extend its context beyond the
    training length. "qwen" keeps both, but needs the released modeling code to run elsewhere.
    Weights are fetched from their devices in chunks of one layer's tensor. If they span processes,
    every process must call this function; process 0 writes.

    Args:
      path: a new or empty folder, or an earlier export, which is replaced.
      params: weights that match `config`, with any sharding.
      tokenizer: a Tokenizer to save with the model, with its stop ids; the files that it was loaded
        from, also generation_config.json, are kept byte for byte. None: no tokenizer.
      param_dtype: dtype to write; None: the dtype of the weights.
      max_shard_size: maximum size of a file, in bytes or such as "5GB"; larger models are split
        into numbered files with an index.
      like: the model folder that the weights came from: its generation_config.json, and what has
        not changed of its config.json, are kept byte for byte.
      allow_nonfinite: whether to save weights with NaN or infinity.
      progress: called with the number of bytes of each chunk that is written.

    Raises:
      ConfigError: the layout cannot express the model, or the tokenizer does not fit it.
      CheckpointError: weights do not match the config, or have NaN or infinity (the error lists all
        of them), the folder is not an export by qwen_jax, or the disk is full.
    """
    _check_layout(layout, "save_pretrained(layout)")
    _check_dtype(param_dtype, "save_pretrained(param_dtype)")
    own_dtype = _check_params(params, config)
    write_folder(
        path,
        config,
        lambda path, index: fetch(leaf_at(params, path), index),
        Export(
            LAYOUTS[layout],
            param_dtype or own_dtype,
            shard_bytes(max_shard_size, "save_pretrained(max_shard_size)"),
            tokenizer,
            {} if like is None else read_released(like),
        ),
        finite=FiniteCheck(f"the weights for {path}", allow=allow_nonfinite),
        progress=progress,
    )


def convert_pretrained(
    source: Source,
    path: str | os.PathLike,
    *,
    layout: LayoutName,
    tokenizer=None,
    max_shard_size: int | str = "5GB",
    released: Mapping[str, bytes] | None = None,
    card: str | None = None,
    with_score: bool = False,
    allow_nonfinite: bool = False,
    progress: Callable[[int], object] = _nothing,
) -> None:
    """Converts an opened folder to a released layout, file by file, without loading the model.

    Arguments and errors are as in save_pretrained.

    Args:
      released: settings to keep, from read_released.
      card: text of README.md; None: there is none.
      with_score: whether the source is a reward model.
    """
    _check_layout(layout, "convert_pretrained(layout)")
    write_folder(
        path,
        source.config,
        source.read,
        Export(
            scoring(LAYOUTS[layout]) if with_score else LAYOUTS[layout],
            source.config.param_dtype,
            shard_bytes(max_shard_size, "convert_pretrained(max_shard_size)"),
            tokenizer,
            {} if released is None else released,
            card,
        ),
        specs=scoring_specs if with_score else param_specs,
        finite=FiniteCheck(f"the weights for {path}", allow=allow_nonfinite),
        progress=progress,
    )


def open_pretrained(
    path: str | os.PathLike,
    *,
    param_dtype: str | None = None,
    step: int | None = None,
    progress: Callable[[int], object] = _nothing,
) -> ReleasedFolder | RunFolder | MergedRun | PeftFolder:
    """Checks a folder and opens it for reading. Arguments and errors are as in load_pretrained.

    Args:
      step: the step of a run's checkpoint; None: the latest valid one.
    """
    _check_dtype(param_dtype, "param_dtype")
    folder = pathlib.Path(local_folder(path))
    if not folder.is_dir():
        raise CheckpointError(
            "the folder does not exist.",
            str(path),
            "pass a local folder, or a name on the Hub such as Qwen/Qwen3-0.6B.",
        )
    if is_adapter(folder):
        base_model = open_pretrained(adapter_base(folder), param_dtype="float32")
        return PeftFolder(folder, base_model, param_dtype=param_dtype, progress=progress)
    raw = read_json(folder / "config.json", error=CheckpointError)
    if has_score_head(raw):
        raise CheckpointError(
            "this is a reward model, which scores text and writes none.",
            str(folder),
            "pass a language model; --reward_model of PPO and --init_from of experiments."
            "reward_model take this one.",
        )
    if not is_run(raw):
        return ReleasedFolder(folder, raw, param_dtype=param_dtype, progress=progress)
    lora = adapters_of(raw, folder)
    if lora is None:
        return RunFolder(folder, raw, param_dtype=param_dtype, step=step, progress=progress)
    base = read_base(folder)
    weights = open_pretrained(base.folder, param_dtype="float32", step=base.step)
    check_base(base, weights, folder)
    return MergedRun(
        folder, raw, lora, weights, param_dtype=param_dtype, step=step, progress=progress
    )


def _check_params(params: Params, config: ModelConfig) -> str:
    """Checks the shapes of `params` against the config and returns their dtype."""
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
            problems.append(f"params{name} has shape {list(leaf.shape)}, not {list(spec.shape)}")
        elif str(leaf.dtype) not in DTYPES:
            problems.append(f"params{name} is {leaf.dtype}, not one of {', '.join(DTYPES)}")
    problems += [f"params{name} is not in the config" for name in found]
    if problems:
        raise CheckpointError(
            listed(problems, "wrong weight"),
            "save_pretrained(params)",
            "pass the config that the weights were created with.",
        )
    return widest({str(leaf.dtype) for leaf in jax.tree.leaves(params)}, "params")


def _check_layout(layout: str, where: str) -> None:
    if layout not in LAYOUTS:
        raise unknown_name("layout", str(layout), LAYOUTS, where)


def _check_dtype(dtype: str | None, where: str) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", str(dtype), DTYPES, where)
