"""Writes a folder atomically."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from qwen_jax import exit_codes
from qwen_jax.errors import CheckpointError, DiskFullError
from qwen_jax.pretrained.tensors import PRODUCER, producer_of
from qwen_jax.utils.files import sync_folder
from qwen_jax.utils.format import format_gb

# The files of an export. A folder that contains anything else is never replaced.
_PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates",
    "qwen.tiktoken",
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
)
CARD = "README.md"
CARD_MARK = "<!-- Written by qwen_jax. Without this line the file is yours, and is kept. -->"


@contextlib.contextmanager
def atomic_folder(folder: pathlib.Path, *, needed_bytes: int) -> Iterator[pathlib.Path]:
    """Yields an empty temporary folder that is renamed to `folder` if the block succeeds.

    An earlier export at `folder` is replaced on success, and kept if the block fails.

    Raises:
      CheckpointError: `folder` is not an export by qwen_jax.
      DiskFullError: the disk is full.
    """
    _check_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed export
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes:
        raise _full(folder, needed_bytes, free)
    partial.mkdir()
    try:
        yield partial
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if exit_codes.full_disk(error) is not None:  # also a quota, or an error of a library
            raise _full(folder, needed_bytes, shutil.disk_usage(folder.parent).free) from error
        raise
    if (folder / CARD).is_file() and CARD_MARK not in (folder / CARD).read_text(errors="replace"):
        shutil.copyfile(folder / CARD, partial / CARD)
    sync_folder(partial)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a killed export
        os.rename(folder, old)
    os.rename(partial, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _full(folder: pathlib.Path, needed_bytes: int, free: int) -> DiskFullError:
    return DiskFullError(
        f"the disk is full or a quota is used up: the export needs {format_gb(needed_bytes)}, "
        f"{format_gb(free)} are free.",
        str(folder),
        "free some disk space, or export to another disk.",
    )


def _check_replaceable(folder: pathlib.Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(
            "this path is a file, but an export is a folder.",
            str(folder),
            "choose another path.",
        )
    unknown = sorted(
        item.name
        for item in folder.iterdir()
        if not any(item.match(pattern) for pattern in _PATTERNS)
    )
    foreign = sorted(
        file.name for file in folder.glob("*.safetensors") if producer_of(file) != PRODUCER
    )
    if unknown or foreign:
        raise CheckpointError(
            f"the folder exists and is not an export by qwen_jax: it contains "
            f"{', '.join((unknown + foreign)[:10])}.",
            str(folder),
            "choose another path; only earlier exports and empty folders are replaced.",
        )
