"""Writes a folder atomically."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from qwen_jax import exit_codes
from qwen_jax.errors import CheckpointError, ConfigError, DiskFullError
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
      ConfigError: another process exports to `folder`.
      DiskFullError: the disk is full.
    """
    _check_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(partial, folder)
    try:
        free = shutil.disk_usage(folder.parent).free
        if free < needed_bytes:
            raise _full(folder, needed_bytes, free)
        yield partial
        _put_in_place(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if exit_codes.full_disk(error) is not None:  # also a quota, or an error of a library
            raise _full(folder, needed_bytes, shutil.disk_usage(folder.parent).free) from error
        raise
    finally:
        os.close(descriptor)


def _locked(partial: pathlib.Path, folder: pathlib.Path) -> int:
    """Creates an empty folder; returns a descriptor that locks it against other exports."""
    while True:
        partial.mkdir(exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # another export has ended in the meantime
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(
                "another process exports to this folder.",
                str(folder),
                "wait until it has ended, or choose another path.",
            ) from None
        except OSError:
            pass  # a file system without locks
        with contextlib.suppress(FileNotFoundError):  # it has ended in the meantime
            if os.path.samestat(os.fstat(descriptor), os.stat(partial)):
                for item in partial.iterdir():  # left by a killed export
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
                return descriptor
        os.close(descriptor)


def _put_in_place(partial: pathlib.Path, folder: pathlib.Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    if (folder / CARD).is_file() and CARD_MARK not in (folder / CARD).read_text(errors="replace"):
        shutil.copyfile(folder / CARD, partial / CARD)
    sync_folder(partial)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a killed export
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
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
