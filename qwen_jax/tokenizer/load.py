"""Loads the tokenizer of any Qwen, with its special tokens, settings and chat templates.

Nothing is guessed: a folder's special tokens are those that its files list. Only a .tiktoken file
by itself, which cannot list any, has those of Qwen-1, whose code names them.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.added_tokens import number
from qwen_jax.tokenizer.bpe import PATTERN, SPECIAL_TOKENS, Tokenizer, parse_ranks
from qwen_jax.tokenizer.settings import read_config, read_files, read_settings, special_names
from qwen_jax.tokenizer.vocabulary_files import (
    Vocabulary,
    added_tokens,
    merge_added,
    read_tokenizer_json,
    read_vocab_and_merges,
)

_PAIR = ("vocab.json", "merges.txt")  # of one vocabulary


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Loads a tokenizer from a folder or a file, as released, or as transformers 4 or 5 wrote it.

    Args:
      path: a folder with tokenizer.json, with vocab.json and merges.txt, or with one .tiktoken
        file, of which the first is read; or one of these files. A .tiktoken file or
        tokenizer.json is then read without the files next to it, vocab.json and merges.txt with
        each other and with the settings next to them.

    Example:
      >>> tokenizer = qwen_jax.load_tokenizer("path/to/Qwen3")  # doctest: +SKIP
      >>> tokenizer.apply_chat_template(  # doctest: +SKIP
      ...     [{"role": "user", "content": "Hi"}], add_generation_prompt=True)
      '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'

    Raises:
      TokenizerError: there is no tokenizer, it is damaged, or a part cannot be reproduced exactly.
      CheckpointError: a file is not JSON.

    Report: 2.2.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise TokenizerError(
            "the file or folder does not exist.", str(path), "check the path of the tokenizer."
        )
    where = str(path.parent if path.is_file() else path)
    if path.is_file() and path.name in _PAIR:
        others = ("tokenizer.json", ".tiktoken")
        files = {n: d for n, d in read_files(path.parent).items() if not n.endswith(others)}
        path = path.parent
    else:
        files = read_files(path)
    config = read_config(files, where)
    if path.is_file():  # whatever its name is
        other = path.name if path.suffix == ".tiktoken" else "tokenizer.tiktoken"
        files = {"tokenizer.json" if path.suffix == ".json" else other: files[path.name]}
    if "tokenizer.json" in files:
        vocabulary = read_tokenizer_json(files, config, where)
    elif files.keys() >= set(_PAIR):
        vocabulary = read_vocab_and_merges(files, config, where)
    else:
        vocabulary = _read_tiktoken(files, config, where)
    return Tokenizer(
        vocabulary.ranks,
        vocabulary.added,
        pattern=vocabulary.pattern,
        nfc=vocabulary.nfc,
        settings=read_settings(files, config, where),
    )


def has_tokenizer(folder: str | os.PathLike) -> bool:
    """Returns whether a folder has the files of a tokenizer, not whether they can be read."""
    folder = pathlib.Path(folder)
    found = [(folder / name).is_file() for name in ("tokenizer.json", "vocab.json")]
    return any(found) or any(folder.glob("*.tiktoken"))


def _read_tiktoken(files: Mapping[str, bytes], config: Mapping[str, Any], where: str) -> Vocabulary:
    """Reads the only .tiktoken file; settings next to it may list other special tokens."""
    names = [name for name in files if name.endswith(".tiktoken")]
    if len(names) != 1:
        found = f"{len(names)} .tiktoken files, not one" if names else "none of them"
        raise TokenizerError(
            f"a tokenizer is a tokenizer.json, a vocab.json with merges.txt, or a .tiktoken file; "
            f"there are {found}.",
            where,
            "pass the file of the tokenizer with --tokenizer.",
        )
    ranks = parse_ranks(files[names[0]], f"{where}/{names[0]}")
    listed = added_tokens(files, config, where) or number(SPECIAL_TOKENS, ranks)
    added = merge_added(listed, (), special_names(config), {}, where)
    return Vocabulary(ranks, added, PATTERN, True)
