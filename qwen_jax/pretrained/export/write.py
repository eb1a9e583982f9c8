"""Writes a model as a folder in a released layout, a chunk of one layer's tensor at a time."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.arrays import Index, cast
from qwen_jax.pretrained.config_json import update_config, write_config, write_generation_config
from qwen_jax.pretrained.export.folder import CARD, atomic_folder
from qwen_jax.pretrained.finite import FiniteCheck
from qwen_jax.pretrained.layouts import (
    Group,
    Layout,
    is_scoring,
    lost_extensions,
    native,
    unsupported,
)
from qwen_jax.pretrained.released import chunks
from qwen_jax.pretrained.tensors import Tensor, copy, write_tensors
from qwen_jax.tokenizer.huggingface import write_tokenizer
from qwen_jax.tokenizer.model_folder import check_vocabulary
from qwen_jax.train.attempts.carried import CONFIG, GENERATION
from qwen_jax.utils.files import atomic_write
from qwen_jax.utils.format import format_gb

_CHUNK_BYTES = 32 << 20  # bytes of a tensor held on the host at a time


@dataclasses.dataclass(frozen=True)
class Export:
    """What an exported folder has besides the weights, and how they are stored.

    Args:
      released: config.json and generation_config.json of the model that these weights came from,
        by name. What has not changed is written as it was.
      card: text of README.md; None: there is none.
    """

    layout: Layout
    dtype: str
    max_shard_bytes: int
    tokenizer: Any = None
    released: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    card: str | None = None


def write_folder(
    path: str | os.PathLike,
    config: ModelConfig,
    read: Callable[[str, Index], np.ndarray],
    export: Export,
    *,
    finite: FiniteCheck,
    specs: Callable[[ModelConfig], Any] = param_specs,
    progress: Callable[[int], object],
) -> None:
    """Writes the folder atomically. Errors are those of huggingface.save_pretrained.

    Args:
      read: returns a slice of a weight, such as "layers.attention.wq".
      specs: returns the specs of the model.
    """
    _check_expressible(export.layout, config)
    if export.tokenizer is not None:
        check_vocabulary(export.tokenizer, config, flag="tokenizer")
    tensors = [
        tensor
        for group in export.layout.groups(specs(config))
        for tensor in _tensors(group, finite.watch(read), export.dtype)
    ]
    if jax.process_index() != 0:  # other processes only take part in the transfers to process 0
        for tensor in tensors:
            for _ in tensor.chunks():
                pass
        finite.check()
        multihost_utils.sync_global_devices("save_pretrained")
        return
    folder = pathlib.Path(path).resolve()
    size = sum(tensor.bytes for tensor in tensors)
    with atomic_folder(folder, needed_bytes=size + 64 * 10**6) as partial:
        if export.tokenizer is not None:
            write_tokenizer(
                partial,
                export.tokenizer,
                layout=export.layout.model_type,
                context_length=config.context_length,
            )
        for name, content in _settings(config, export).items():
            with atomic_write(partial / name) as file:
                file.write(content)
        write_tensors(partial, tensors, max_shard_bytes=export.max_shard_bytes, progress=progress)
        finite.check()
    logging.info(
        "exported %s to %s (%s layout, %s).",
        format_gb(size),
        folder,
        export.layout.model_type,
        export.dtype,
    )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("save_pretrained")


def _settings(config: ModelConfig, export: Export) -> dict[str, bytes]:
    """Returns the content of each file besides weights and tokenizer."""
    layout, tokenizer = export.layout, export.tokenizer
    ids = _token_ids(tokenizer)
    more: dict[str, Any] = {}
    if is_scoring(layout):  # a single score is a single label
        more = {
            "architectures": layout.constants["architectures"],
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "pad_token_id": ids["pad"],
        }
    found = None
    if CONFIG in export.released:
        found = update_config(
            export.released[CONFIG], config, layout, dtype=export.dtype, more=more
        )
    if found is None:
        written = write_config(config, layout, dtype=export.dtype, end_of_text=ids["end_of_text"])
        if ids["eos"] is not None:
            written["eos_token_id"] = ids["eos"]
        found = _json(written | more)
    files = {CONFIG: found}
    if not is_scoring(layout):
        own = write_generation_config(
            layout, end_of_text=ids["end_of_text"], im_end=ids["im_end"], eos=ids["eos"]
        )
        kept = export.released.get(GENERATION)
        if kept is None and tokenizer is not None:
            kept = tokenizer.settings.files.get(GENERATION)  # of the model that it came from
        files[GENERATION] = _json(own) if kept is None else kept
    if export.card is not None:
        files[CARD] = export.card.encode()
    return files


def _token_ids(tokenizer: Any) -> dict[str, int | None]:
    """Returns the ids of special tokens by their use; None for those that the tokenizer lacks."""
    if tokenizer is None:
        return dict.fromkeys(("end_of_text", "im_end", "eos", "pad"))
    special, end = tokenizer.special_tokens, "<|endoftext|>"
    return {
        "end_of_text": special.get(end),
        "im_end": special.get("<|im_end|>"),
        "eos": tokenizer.token_id("eos_token"),
        "pad": pad if (pad := tokenizer.token_id("pad_token")) is not None else special.get(end),
    }


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def _check_expressible(layout: Layout, config: ModelConfig) -> None:
    """Raises ConfigError if a layout cannot express a model; warns of extensions that it lacks."""
    if problems := unsupported(layout, config):
        raise ConfigError(
            f"the {layout.model_type!r} layout cannot express this model: {'; '.join(problems)}.",
            "layout",
            f'use layout="{other.model_type}".'
            if (other := native(config))
            else "keep the run folder: every layout lacks some of them.",
        )
    if missing := lost_extensions(layout, config):
        logging.warning(
            "the %r layout has no %s: the exported model runs without them beyond %d tokens.",
            layout.model_type,
            " and no ".join(missing),
            config.context_length,
        )


def _tensors(group: Group, read: Callable[[str, Index], np.ndarray], dtype: str) -> list[Tensor]:
    """Returns the released tensors of a group, whose chunks are generated when they are written."""

    def layer_chunks(layer: int, name: str) -> Iterator[np.ndarray]:
        for weight, shape in zip(group.weights, group.layer_shapes(), strict=True):
            axis = weight.row_axis
            step_bytes = np.dtype(dtype).itemsize * int(np.prod(shape)) // shape[axis]
            for index in chunks(shape, axis, step_bytes, _CHUNK_BYTES):
                if group.stacked:
                    chunk = read(weight.path, (slice(layer, layer + 1), *index))[0]
                else:
                    chunk = read(weight.path, index)
                chunk = weight.to_released(cast(chunk, dtype, name))
                if not chunk.flags.c_contiguous:
                    contiguous = np.empty(chunk.shape, chunk.dtype)
                    copy(contiguous, chunk)
                    chunk = contiguous
                yield chunk

    return [
        Tensor(name, group.shape(), dtype, lambda layer=layer, name=name: layer_chunks(layer, name))
        for layer, name in enumerate(group.names())
    ]
