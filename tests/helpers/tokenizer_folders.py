"""Folders of one small tokenizer, in every form that released models and transformers write."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from qwen_jax.tokenizer.bpe import PATTERN
from qwen_jax.tokenizer.merges import printable, recover_merges

MERGES = (
    b"th",
    b"the",
    b" the",
    b"in",
    b"ing",
    b" w",
    b"  ",
    b"    ",
    b"\n\n",
    b"tool",
    b"\xe4\xbd",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The last one is as tokenizer.add_tokens adds a string.
OTHERS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<think>!", "<new\u00e9>")


def ranks(merges: Iterable[bytes] = MERGES) -> dict[bytes, int]:
    tokens = [bytes([byte]) for byte in range(256)]
    for merge in merges:
        for end in range(2, len(merge) + 1):
            if merge[:end] not in tokens:
                tokens.append(merge[:end])
    return {token: rank for rank, token in enumerate(tokens)}


def added(first_id: int) -> list[dict[str, Any]]:
    """Returns the added tokens, with their flags, numbered from `first_id`."""
    return [
        {
            "id": first_id + index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": content == OTHERS[-1],
            "special": content in SPECIAL,
        }
        for index, content in enumerate((*SPECIAL, *OTHERS))
    ]


def tokenizer_json(vocabulary: dict[bytes, int], *, pairs: bool = True) -> dict[str, Any]:
    """Returns the content of a tokenizer.json as transformers 5 writes it.

    Args:
      pairs: whether merges are pairs; otherwise strings, as in older files.
    """
    merges = [[printable(left), printable(right)] for left, right in recover_merges(vocabulary)]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(len(vocabulary)),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {**byte_level, "use_regex": False}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [a],
            "pair": [a, b],
            "special_tokens": {},
        },
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {printable(token): rank for token, rank in vocabulary.items()},
            "merges": merges if pairs else [" ".join(pair) for pair in merges],
        },
    }


def config(**changes: Any) -> dict[str, Any]:
    """Returns the content of a tokenizer_config.json, with the roles of tokens."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "errors": "replace",
        "model_max_length": 32768,
        **changes,
    }


def dump(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write(folder: pathlib.Path, form: str, vocabulary: dict[bytes, int] | None = None) -> None:
    """Writes a folder.

    Args:
      form: "released" (Qwen2.5 and Qwen3), "transformers 4", "transformers 5", "slow" (of the
        Python tokenizers of transformers 4) or "tiktoken" (Qwen-1's file, with settings).
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ranks() if vocabulary is None else vocabulary
    tokens = added(len(vocabulary))
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokens
    }
    if form in ("released", "transformers 4", "transformers 5"):
        content = tokenizer_json(vocabulary, pairs=form != "released")
        dump(folder / "tokenizer.json", content)
    if form == "transformers 5":
        dump(
            folder / "tokenizer_config.json",
            config(backend="tokenizers", is_local=True, extra_special_tokens=list(SPECIAL[1:])),
        )
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        return
    if form == "tiktoken":
        import base64

        lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in vocabulary.items()]
        (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    else:
        vocab = {printable(token): rank for token, rank in vocabulary.items()}
        dump(folder / "vocab.json", vocab)
        pairs = [f"{printable(a)} {printable(b)}\n" for a, b in recover_merges(vocabulary)]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(pairs), encoding="utf-8")
    if form in ("transformers 4", "slow"):
        dump(folder / "added_tokens.json", {token["content"]: token["id"] for token in tokens})
        role = {key: tokens[0][key] for key in ("lstrip", "normalized", "rstrip", "single_word")}
        roles = {
            "eos_token": {"content": "<|im_end|>", **role},
            "pad_token": {"content": "<|endoftext|>", **role},
            "additional_special_tokens": list(SPECIAL[1:]),
        }
        dump(folder / "special_tokens_map.json", roles)
    template = {} if form == "transformers 4" else {"chat_template": TEMPLATE}
    if form == "transformers 4":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    listed = {} if form == "slow" else {"added_tokens_decoder": decoder}
    more = {"additional_special_tokens": list(SPECIAL[1:]), "add_bos_token": False}
    dump(folder / "tokenizer_config.json", config(**listed, **template, **more))


FORMS = ("released", "transformers 4", "transformers 5", "slow", "tiktoken")
