"""The tokenizer in a model's folder, and whether a tokenizer fits a model."""

import os
import pathlib

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.huggingface import TIKTOKEN_FILE, load_tokenizer


def find_tokenizer(folder: str | os.PathLike, file: str | None = None) -> Tokenizer:
    """The tokenizer of a run folder or a released folder.

    Args:
      file: a .tiktoken file to read instead of the folder's own; None: the folder's.

    Raises:
      ConfigError: the folder has no tokenizer, or more than one.
      TokenizerError: a file that is missing or damaged.
    """
    if file:
        return Tokenizer.from_file(file)
    folder = pathlib.Path(folder)
    files = sorted(folder.glob("*.tiktoken"))
    if [path.name for path in files] == [TIKTOKEN_FILE]:
        return load_tokenizer(folder)  # tokenizer_config.json may name other special tokens
    if len(files) == 1:
        return Tokenizer.from_file(files[0])
    if not files and (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder)
    raise ConfigError(
        f"{len(files)} .tiktoken files in the model's folder.",
        str(folder),
        "name one with --tokenizer.",
    )


def check_vocabulary(
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    flag: str,
    fix: str = "pass the tokenizer that the model was trained with.",
) -> None:
    """Raises ConfigError when the tokenizer has ids that the model has no rows for.

    Args:
      flag: what the error names.
      fix: what the error advises.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.vocab_size} rows.",
            flag,
            fix,
        )
