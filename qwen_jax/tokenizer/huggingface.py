"""Writes the files of a tokenizer that `transformers` and the released code read."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.bpe import PATTERN, Tokenizer, write_ranks
from qwen_jax.tokenizer.carry import save_tokenizer
from qwen_jax.tokenizer.merges import printable, recover_merges
from qwen_jax.tokenizer.settings import CONFIG, GENERATION
from qwen_jax.tokenizer.template.builtin import CHAT_TEMPLATE
from qwen_jax.utils.files import write_bytes, write_json, write_text

TIKTOKEN_FILE = "qwen.tiktoken"


def write_tokenizer(
    folder: pathlib.Path, tokenizer: Tokenizer, *, layout: str, context_length: int
) -> None:
    """Writes the files for `transformers.AutoTokenizer.from_pretrained(folder)`.

    These are the files that the tokenizer was loaded from, byte for byte. For a .tiktoken file
    they are tokenizer.json and tokenizer_config.json, with vocab.json and merges.txt for "qwen2".
    For "qwen" there is qwen.tiktoken as well, and settings that a .tiktoken file came with are
    kept: the code of Qwen-1 reads both. generation_config.json is kept in any case.

    Raises:
      TokenizerError: the ids have gaps, or a token is not a merge of two lower-ranked tokens.
    """
    ranks, files = tokenizer.mergeable_ranks, tokenizer.settings.files
    has_ranks = any(name.endswith(".tiktoken") for name in files)
    as_released = layout == "qwen" and has_ranks and CONFIG in files
    if "tokenizer.json" in files or "vocab.json" in files or as_released:
        save_tokenizer(folder, tokenizer)
        if layout == "qwen" and not has_ranks:
            write_ranks(folder / TIKTOKEN_FILE, ranks)
        return
    if GENERATION in files:
        write_bytes(folder / GENERATION, files[GENERATION])
    _check_dense(tokenizer)
    text_of = {token: printable(token) for token in ranks}
    vocab = {text_of[token]: rank for token, rank in sorted(ranks.items(), key=lambda kv: kv[1])}
    merges = [f"{text_of[left]} {text_of[right]}" for left, right in recover_merges(ranks)]
    specials = sorted(tokenizer.special_tokens.items(), key=lambda kv: kv[1])
    write_json(folder / "tokenizer.json", _tokenizer_json(vocab, merges, specials), indent=2)
    write_json(
        folder / "tokenizer_config.json", _tokenizer_config(specials, context_length), indent=2
    )
    if layout == "qwen":
        write_ranks(folder / TIKTOKEN_FILE, ranks)
    else:
        write_json(folder / "vocab.json", vocab, indent=2)
        lines = "".join(merge + "\n" for merge in merges)
        write_text(folder / "merges.txt", "#version: 0.2\n" + lines)


def with_merges(
    files: Mapping[str, bytes],
    ranks: Mapping[bytes, int],
    new: Mapping[bytes, int],
    added: Mapping[str, int],
) -> dict[str, bytes]:
    """Returns the files of a tokenizer with merges added at the end; the other files are unchanged.

    The vocabulary then lists added tokens too: `tokenizers` gives those that it does not list new
    ids, behind all others.

    Args:
      ranks: all tokens with their ids.
      new: those of them that are new, which have the highest ids.
      added: content -> id of the added tokens.

    Raises:
      TokenizerError: a token is not a merge of two lower-ranked tokens.
    """
    pairs = list(recover_merges(ranks))[-len(new) :] if new else []
    named = {**added, **{printable(token): number for token, number in new.items()}}
    found = dict(files)
    if "tokenizer.json" in files:
        content = json.loads(files["tokenizer.json"])
        model = content["model"]
        strings = bool(model["merges"]) and isinstance(model["merges"][0], str)
        written = [[printable(left), printable(right)] for left, right in pairs]
        model["merges"] += [" ".join(pair) for pair in written] if strings else written
        model["vocab"] |= named
        found["tokenizer.json"] = _json_bytes(content)
    if "vocab.json" in files:
        found["vocab.json"] = _json_bytes(json.loads(files["vocab.json"]) | named)
        lines = files["merges.txt"].decode("utf-8").rstrip("\n").split("\n")
        lines += [f"{printable(left)} {printable(right)}" for left, right in pairs]
        found["merges.txt"] = ("\n".join(lines) + "\n").encode("utf-8")
    return found


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _check_dense(tokenizer: Tokenizer) -> None:
    """Checks that special tokens directly follow the others, as the file formats require."""
    ids = sorted(tokenizer.mergeable_ranks.values()) + sorted(tokenizer.special_tokens.values())
    if ids != list(range(len(ids))):
        gap = next(i for i, token in enumerate(ids) if token != i)
        raise TokenizerError(
            f"the ids have a gap or a duplicate at {gap}.",
            "tokenizer",
            "number the tokens from 0, and the special tokens directly after them.",
        )
    if missing := [byte for byte in range(256) if bytes([byte]) not in tokenizer.mergeable_ranks]:
        raise TokenizerError(
            f"single bytes without a token: {len(missing)}; the first is {missing[0]:#04x}.",
            "tokenizer.mergeable_ranks",
            "train with all 256 bytes.",
        )


def _tokenizer_json(
    vocab: dict[str, int], merges: list[str], specials: list[tuple[str, int]]
) -> dict[str, Any]:
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, **_added(text)} for text, token in specials],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _tokenizer_config(specials: list[tuple[str, int]], context_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(token): _added(text) for text, token in specials},
        "additional_special_tokens": [text for text, _ in specials if text != "<|endoftext|>"],
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "split_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": context_length,
        "chat_template": CHAT_TEMPLATE,
    }


def _added(text: str) -> dict[str, Any]:
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
