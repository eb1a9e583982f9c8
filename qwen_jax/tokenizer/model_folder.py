"""Finds the tokenizer in a model folder, and checks that a tokenizer fits a model."""

import os
import pathlib

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError
from qwen_jax.tokenizer import generation_config
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import has_tokenizer, load_tokenizer


def find_tokenizer(folder: str | os.PathLike, file: str | None = None) -> Tokenizer:
    """Loads the tokenizer of a run folder or a released folder.

    Args:
      file: the folder or the file of another tokenizer; None: the one in the folder. In any case,
        the generation_config.json is that of the model's folder, if it has one.

    Raises:
      ConfigError: the folder does not exist, or has no model.
      TokenizerError: there is no tokenizer, or more than one, or it cannot be reproduced.
    """
    folder = pathlib.Path(folder)
    if file:
        return generation_config.of_folder(load_tokenizer(file), folder)
    if not folder.is_dir():
        raise ConfigError(
            "the folder of the model does not exist.",
            str(folder),
            "check the path; it is a run folder or a released dense Qwen to Qwen3.",
        )
    if not has_tokenizer(folder) and not (folder / "config.json").exists():
        raise ConfigError(
            "there is no model in this folder: it has no config.json.",
            str(folder),
            "pass a run folder, or a released dense Qwen to Qwen3; the folders of prepare_data "
            "have no model.",
        )
    return load_tokenizer(folder)


def check_vocabulary(
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    flag: str,
    fix: str = "pass the tokenizer that the model was trained with.",
) -> None:
    """Raises ConfigError if the tokenizer has more ids than the model's vocabulary.

    Args:
      flag: the flag that the error names.
      fix: the fix that the error suggests.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the model has "
            f"vocab_size={model.vocab_size}.",
            flag,
            fix,
        )
