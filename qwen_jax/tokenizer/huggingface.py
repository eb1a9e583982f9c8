"""Converts a Tokenizer to and from the files that `transformers` and the released code read.

tiktoken merges adjacent parts whose concatenation is a token, lowest rank first. The files of
`tokenizers` list pairs instead, so this module recovers the pair of each token.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from qwen_jax.errors import CheckpointError, TokenizerError
from qwen_jax.tokenizer.bpe import PATTERN, Tokenizer, write_ranks
from qwen_jax.utils.files import read_json, write_json, write_text

TIKTOKEN_FILE = "qwen.tiktoken"
_MAX_BYTES = 1 << 28  # of tokenizer.json; those of large vocabularies have 20 MB

# ChatML as in tokenizer/chatml.py, with Qwen's system message by default.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for turn in messages %}"
    "{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tokenizer(
    folder: pathlib.Path, tokenizer: Tokenizer, *, layout: str, context_length: int
) -> None:
    """Writes the files for `transformers.AutoTokenizer.from_pretrained(folder)`.

    These are tokenizer.json and tokenizer_config.json, with vocab.json and merges.txt for "qwen2"
    and qwen.tiktoken for "qwen".

    Raises:
      TokenizerError: the ids have gaps, or a token is not a merge of two lower-ranked tokens.
    """
    ranks = tokenizer.mergeable_ranks
    _check_dense(tokenizer)
    text_of = {token: _printable(token) for token in ranks}
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


def has_tokenizer(path: str | pathlib.Path) -> bool:
    """Returns whether the folder has files that `load_tokenizer` reads."""
    return any((pathlib.Path(path) / name).is_file() for name in (TIKTOKEN_FILE, "tokenizer.json"))


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """Loads the tokenizer of an exported or released folder: qwen.tiktoken or tokenizer.json.

    Raises:
      TokenizerError: the folder has neither, or its files are corrupted.
      CheckpointError: a file is not JSON.
    """
    folder = pathlib.Path(path)
    if not has_tokenizer(folder):
        raise TokenizerError(
            f"no {TIKTOKEN_FILE} or tokenizer.json found.",
            str(folder),
            "pass a model folder that was saved with its tokenizer.",
        )
    specials = _special_tokens(folder)
    if (folder / TIKTOKEN_FILE).is_file():
        return Tokenizer.from_file(folder / TIKTOKEN_FILE, special_tokens=specials)
    path = folder / "tokenizer.json"
    model = read_json(path, error=CheckpointError, max_bytes=_MAX_BYTES).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    byte_of = {char: byte for byte, char in _BYTE_CHARS.items()}
    if (
        not isinstance(vocab, dict)
        or not all(type(rank) is int and 0 <= rank < len(vocab) for rank in vocab.values())
        or not byte_of.keys() >= set().union(*vocab)
    ):
        raise TokenizerError(
            "model.vocab is not a byte-level vocabulary of tokens with ids.",
            str(path),
            "download the file again, or pass a .tiktoken file with --tokenizer.",
        )
    ranks = {bytes(byte_of[char] for char in token): rank for token, rank in vocab.items()}
    return Tokenizer(ranks, special_tokens=specials)


def recover_merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the pair of lower-ranked tokens that merges into each token, in rank order.

    Raises:
      TokenizerError: lower ranks do not merge a token's bytes into exactly two parts.
    """
    orphans = []
    for token, rank in sorted(ranks.items(), key=lambda kv: kv[1]):
        if len(token) == 1:
            continue
        parts = _merge_below(token, ranks, rank)
        if len(parts) == 2:
            yield parts[0], parts[1]
        else:
            orphans.append(token)
    if orphans:
        raise TokenizerError(
            f"tokens that merges of lower ranks cannot produce: {len(orphans)}; the first is "
            f"{orphans[0]!r}.",
            "tokenizer.mergeable_ranks",
            "export a vocabulary that was trained or extended with BPE.",
        )


def _merge_below(token: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """Applies BPE to `token` with only the ranks below `limit`, down to two parts."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, where = limit, -1
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], limit)
            if rank < best:
                best, where = rank, i
        if where < 0:
            break
        parts[where : where + 2] = [parts[where] + parts[where + 1]]
    return parts


def _byte_chars() -> dict[int, str]:
    """Returns byte -> the character that represents it in byte-level BPE files.

    Printable Latin-1 bytes represent themselves; the others map to U+0100 and up, in order.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {byte: chr(byte) for byte in printing} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


_BYTE_CHARS = _byte_chars()


def _printable(token: bytes) -> str:
    return "".join(_BYTE_CHARS[byte] for byte in token)


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


def _special_tokens(folder: pathlib.Path) -> dict[str, int] | None:
    """Returns the special tokens that the folder lists; None: Qwen's."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    path = folder / "tokenizer_config.json"
    named = read_json(path, error=CheckpointError).get("added_tokens_decoder") or None
    if named is None:
        return None
    try:
        found = {entry["content"]: int(token) for token, entry in named.items()}
        ok = all(isinstance(text, str) and 0 <= token < 2**31 for text, token in found.items())
    except (AttributeError, KeyError, TypeError, ValueError):
        ok = False
    if not ok:
        raise TokenizerError(
            "added_tokens_decoder does not map ids to special tokens.",
            str(path),
            "download the file again, or pass a .tiktoken file with --tokenizer.",
        )
    return found
