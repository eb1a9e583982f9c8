"""Keeps a tokenizer's files byte for byte, so that what comes out is what went in."""

import os
import pathlib
from typing import Any, Protocol

from qwen_jax.utils.files import atomic_write

TOKENIZER = "tokenizer.tiktoken"  # the file of a vocabulary that was made here


class Savable(Protocol):
    """The interface of qwen_jax.tokenizer.bpe.Tokenizer that saving needs."""

    settings: Any  # settings.Settings

    def save(self, path: str | os.PathLike) -> None: ...


def save_tokenizer(folder: pathlib.Path, tokenizer: Savable) -> None:
    """Writes the files that a tokenizer was loaded from; `load_tokenizer(folder)` reads them.

    A tokenizer that was made here, or that is a .tiktoken file, is saved as one.
    """
    if not has_settings(tokenizer):
        tokenizer.save(folder / TOKENIZER)
        return
    files = tokenizer.settings.files
    if not any(map(_is_vocabulary, files)):  # it was made here, and has the settings of a model
        tokenizer.save(folder / TOKENIZER)
    elif TOKENIZER not in files:
        (folder / TOKENIZER).unlink(missing_ok=True)  # of an earlier version, without settings
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)


def has_settings(tokenizer: Savable) -> bool:
    """Returns whether the tokenizer has files that say more than a .tiktoken file."""
    return any(not name.endswith(".tiktoken") for name in tokenizer.settings.files)


def _is_vocabulary(name: str) -> bool:
    return name in ("tokenizer.json", "vocab.json") or name.endswith(".tiktoken")
