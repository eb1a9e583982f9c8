"""Writes folders as the five families of Qwen were released, with random weights, in NumPy.

Nothing here is of qwen_jax: what it reads is compared with what others wrote. Weights of Qwen-1
are those of reference/qwen1_tiny, whose logits are known.
"""

import base64
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.released.families import CONFIG, FAMILIES, Family

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SMALL = 2000  # tokens of text of a small vocabulary
_SHARD_BYTES = 200_000
_YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
# Changes of config.json by kind; YaRN with the keys of the model cards of Qwen2.5 and Qwen3.
KINDS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "GQA": {"num_key_value_heads": 2},
    "head size": {"head_dim": 24, "num_key_value_heads": 2},
    "BF16": {"torch_dtype": "bfloat16"},
    "FP16": {"torch_dtype": "float16"},
    "sharded": {},
    "yarn": {"rope_scaling": _YARN | {"type": "yarn"}, "max_position_embeddings": 512},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "sliding": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "unpadded": {},
}


def read_ranks(shared: pathlib.Path, size: int | None = _SMALL) -> dict[bytes, int]:
    """Returns the first `size` tokens of Qwen's vocabulary, which is closed under merging."""
    lines = (shared / "reference/qwen.tiktoken").read_bytes().splitlines()[:size]
    return {base64.b64decode(line.split()[0]): rank for rank, line in enumerate(lines)}


def config_of(family: str, kind: str, tokens: int) -> dict[str, Any]:
    """Returns config.json; tokens: the size of the tokenizer, of which the model's is padded."""
    about = FAMILIES[family]
    changes = KINDS[kind]
    if family == "Qwen3" and kind == "yarn":  # 40,960 of 32,768, as released
        scaling = {"rope_type": "yarn", **_YARN}
        changes = {"rope_scaling": scaling, "max_position_embeddings": 640}
    end = tokens - len(about.added)
    padded = tokens if kind == "unpadded" else -(-tokens // 128) * 128 + 128
    ids = {"bos_token_id": end, "eos_token_id": end + 2}
    return {**CONFIG, **about.config, **ids, "vocab_size": padded, **changes}


def tensors_of(config: Mapping[str, Any], seed: int, tokens: int) -> Iterator[tuple[str, Any]]:
    """Yields name, float32 array of every weight; rows of ids without a token are 0."""
    rng = np.random.default_rng(seed)
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    qwen3 = config["model_type"] == "qwen3"

    def normal(*shape: int, scale: float) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    def norm(width: int) -> np.ndarray:
        return 1 + normal(width, scale=0.2)

    def vocabulary(scale: float) -> np.ndarray:
        table = normal(config["vocab_size"], hidden, scale=scale)
        table[tokens:] = 0  # never the most probable
        return table

    tied = config["tie_word_embeddings"]
    yield "model.embed_tokens.weight", vocabulary(2 / hidden**0.5 if tied else 1.0)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        widths = {"q": heads * size, "k": kv_heads * size, "v": kv_heads * size}
        yield block + "input_layernorm.weight", norm(hidden)
        for name, width in widths.items():
            linear = f"{block}self_attn.{name}_proj."
            yield linear + "weight", normal(width, hidden, scale=hidden**-0.5)
            if not qwen3:
                yield linear + "bias", normal(width, scale=0.3)
        if qwen3:
            yield block + "self_attn.q_norm.weight", norm(size)
            yield block + "self_attn.k_norm.weight", norm(size)
        yield block + "self_attn.o_proj.weight", normal(hidden, heads * size, scale=hidden**-0.5)
        yield block + "post_attention_layernorm.weight", norm(hidden)
        for name in ("gate", "up"):
            yield f"{block}mlp.{name}_proj.weight", normal(ffn, hidden, scale=hidden**-0.5)
        yield block + "mlp.down_proj.weight", normal(hidden, ffn, scale=ffn**-0.5)
    yield "model.norm.weight", norm(hidden)
    if not tied:
        yield "lm_head.weight", vocabulary(2 / hidden**0.5)


def write(
    folder: pathlib.Path,
    family: str,
    kind: str,
    shared: pathlib.Path,
    *,
    form: str = "released",
    ranks: Mapping[bytes, int] | None = None,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Writes one folder.

    Args:
      kind: one of KINDS.
      form: files of the tokenizer: "released", "tokenizer.json", "vocab.json" or "tiktoken".
      ranks: token -> rank; None: 2,000 tokens of Qwen's vocabulary (Qwen-1: what fits 512 ids).
      changes: of config.json, such as another size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = FAMILIES[family]
    if family == "Qwen-1":
        return _write_qwen1(folder, kind, shared, ranks, about)
    ranks = read_ranks(shared) if ranks is None else ranks
    tokens = len(ranks) + len(about.added)
    config = {**config_of(family, kind, tokens), **(changes or {})}
    _dump(folder / "config.json", config)
    _write_weights(
        folder, tensors_of(config, seed, tokens), config["torch_dtype"], kind == "sharded"
    )
    write_tokenizer(folder, about, ranks, shared, form)


def _write_weights(folder, tensors, dtype: str, sharded: bool) -> None:
    """Writes one file, or shards with their index."""
    files: list[dict[str, np.ndarray]] = [{}]
    for name, array in tensors:
        if sharded and sum(each.nbytes for each in files[-1].values()) > _SHARD_BYTES:
            files.append({})
        files[-1][name] = array.astype(np.dtype(dtype))
    if len(files) == 1:
        return save_file(files[0], folder / "model.safetensors", metadata={"format": "pt"})
    names = [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    for name, content in zip(names, files, strict=True):
        save_file(content, folder / name, metadata={"format": "pt"})
    total = sum(array.nbytes for content in files for array in content.values())
    where = {key: name for name, content in zip(names, files, strict=True) for key in content}
    _dump(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": where},
    )


def _write_qwen1(folder, kind, shared, ranks, about: Family) -> None:
    source = shared / "reference/qwen1_tiny"
    shutil.copyfile(source / "config.json", folder / "config.json")
    dtype = KINDS[kind].get("torch_dtype", "float32")
    tensors = load_file(source / "model.safetensors").items()
    _write_weights(folder, tensors, dtype, kind == "sharded")
    ranks = read_ranks(shared, 512 - len(about.added)) if ranks is None else ranks
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    _dump(
        folder / "tokenizer_config.json",
        {"model_max_length": about.length, "tokenizer_class": "QWenTokenizer"},
    )
    _dump(folder / "generation_config.json", _generation(about, len(ranks)))


def _generation(about: Family, first: int) -> dict[str, Any]:
    ids = {name: first + index for index, name in enumerate(about.added)}

    def number(value):
        return [ids[each] for each in value] if isinstance(value, list) else ids.get(value, value)

    return {key: number(value) for key, value in about.generation.items()}


def write_tokenizer(
    folder: pathlib.Path,
    about: Family,
    ranks: Mapping[bytes, int],
    shared: pathlib.Path,
    form: str = "released",
) -> None:
    """Writes the tokenizer, its settings and template, and generation_config.json."""
    template = about.template
    if about.released_template:
        file = shared / f"reference/chat_templates/{template}.jinja"
        template = file.read_text(encoding="utf-8")
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = [
        {"id": len(ranks) + index, "content": name, **flags, "special": about.is_special(name)}
        for index, name in enumerate(about.added)
    ]
    merges = list(_merges(ranks))
    vocab = {_printable(token): rank for token, rank in ranks.items()}
    if form in ("released", "vocab.json"):
        _dump(folder / "vocab.json", vocab, indent=None)
        lines = "".join(f"{a} {b}\n" for a, b in merges)
        (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    if form in ("released", "tokenizer.json"):
        _dump(folder / "tokenizer.json", _fast(vocab, merges, added), indent=None)
    special = [name for name in about.added if about.is_special(name)]
    _dump(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(each["id"]): {key: value for key, value in each.items() if key != "id"}
                for each in added
            },
            "additional_special_tokens": special[1:],
            "bos_token": None,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": about.length,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    _dump(folder / "generation_config.json", _generation(about, len(ranks)))


def _fast(vocab, merges, added) -> dict[str, Any]:
    """Returns tokenizer.json, with merges as strings, as Qwen2.5 and Qwen3 were released."""
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    level["use_regex"] = False
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split | {"invert": False}, level]},
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[str, str]]:
    """Yields the two parts that each token is merged from, in the order of ranks."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [a + b for a, b in zip(parts, parts[1:], strict=False)]
            best = min(pairs, key=lambda pair: ranks.get(pair, rank))
            if ranks.get(best, rank) >= rank:
                raise ValueError(f"no merges lead to {token!r}")
            index = pairs.index(best)
            parts[index : index + 2] = [best]
        if len(parts) == 2:
            yield _printable(parts[0]), _printable(parts[1])


def _printable(token: bytes) -> str:
    """GPT-2's letters for bytes: printable ones stand for themselves."""
    return "".join(_LETTERS[byte] for byte in token)


def _letters() -> list[str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


_LETTERS = _letters()


def _dump(path: pathlib.Path, value: Any, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent), encoding="utf-8")
