"""Reads tokenizer.json, or vocab.json and merges.txt. What we cannot reproduce is refused by name.

Text becomes ids by normalization, added tokens, a regular expression, bytes and merges; each of
them is a part of tokenizer.json that has a type.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qwen_jax.errors import TokenizerError
from qwen_jax.tokenizer.added_tokens import AddedToken
from qwen_jax.tokenizer.bpe import PATTERN, PATTERNS
from qwen_jax.tokenizer.merges import BYTE_CHARS, check_merges
from qwen_jax.tokenizer.settings import CONFIG, parse_json, special_names

_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")  # of folders without tokenizer.json
_BYTE_OF = {char: byte for byte, char in BYTE_CHARS.items()}
_TYPES = {"content": str, "id": int, "special": bool, "normalized": bool}  # of an added token
_UNSUPPORTED_FLAGS = ("lstrip", "rstrip", "single_word")


class Vocabulary(NamedTuple):
    """How text becomes ids."""

    ranks: dict[bytes, int]
    added: tuple[AddedToken, ...]
    pattern: str
    nfc: bool


def read_tokenizer_json(
    files: Mapping[str, bytes], config: Mapping[str, Any], where: str
) -> Vocabulary:
    """Reads tokenizer.json.

    Args:
      files: name -> content of the files of the tokenizer.
      config: the content of tokenizer_config.json.
      where: the folder, for errors.

    Raises:
      TokenizerError: a part of the file cannot be reproduced, or is malformed.
    """
    path = f"{where}/tokenizer.json"
    content = parse_json(files, "tokenizer.json", where)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise _refused("the model", kind, path)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise _refused(f"model.{key}", model[key], path)
    _check_post_processor(content.get("post_processor"), path)
    decoder = content.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise _refused("the decoder", decoder, path)
    listed = model.get("merges")
    if not isinstance(listed, list):
        raise TokenizerError(
            "model.merges is not a list of merges.", path, "download the file again."
        )
    merges = (item.split(" ") if isinstance(item, str) else item for item in listed)
    added = _added(content.get("added_tokens") or (), path)
    ranks, added = _vocabulary(model.get("vocab"), merges, added, files, config, where, path)
    return Vocabulary(
        ranks,
        added,
        _pattern(content.get("pre_tokenizer"), path),
        _nfc(content.get("normalizer"), path),
    )


def read_vocab_and_merges(
    files: Mapping[str, bytes], config: Mapping[str, Any], where: str
) -> Vocabulary:
    """Reads vocab.json and merges.txt, whose other parts are those of the class of the tokenizer.

    Args and errors are those of read_tokenizer_json.
    """
    kind = config.get("tokenizer_class") or _CLASSES[0]
    if kind not in _CLASSES:
        raise _refused("tokenizer_class without tokenizer.json", kind, f"{where}/{CONFIG}")
    path = f"{where}/merges.txt"
    try:
        lines = files["merges.txt"].decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise TokenizerError(
            "the merges are not UTF-8.", path, "download the file again."
        ) from None
    if lines[0].startswith("#version:"):
        lines = lines[1:]
    merges = (line.rstrip("\r").split(" ") for line in lines if line)
    vocab = parse_json(files, "vocab.json", where)
    ranks, added = _vocabulary(vocab, merges, (), files, config, where, path)
    return Vocabulary(ranks, added, PATTERN, True)


def added_tokens(
    files: Mapping[str, bytes], config: Mapping[str, Any], where: str
) -> tuple[AddedToken, ...]:
    """Returns the tokens that tokenizer_config.json or added_tokens.json lists."""
    decoder = config.get("added_tokens_decoder") or {}
    path = f"{where}/{CONFIG}"
    if decoder:
        try:
            return _added([{"id": int(token), **item} for token, item in decoder.items()], path)
        except (AttributeError, TypeError, ValueError):
            raise TokenizerError(
                "added_tokens_decoder does not map ids to added tokens.",
                path,
                "download the file again, or pass another one with --tokenizer.",
            ) from None
    named = set(special_names(config))
    items = [
        {"content": name, "id": token, "special": name in named, "normalized": name not in named}
        for name, token in parse_json(files, "added_tokens.json", where).items()
    ]
    return _added(items, f"{where}/added_tokens.json")


def merge_added(
    first: Iterable[AddedToken],
    second: Iterable[AddedToken],
    special: Iterable[str],
    vocab: Mapping[str, int],
    where: str,
) -> tuple[AddedToken, ...]:
    """Returns the added tokens of two lists, with the flags of the second, as transformers does.

    Args:
      special: tokens that the settings call special.
      vocab: other tokens; a special one that is none of the added tokens has its id here.

    Raises:
      TokenizerError: the lists give a token two ids, or a special token has no id.
    """
    found = {token.content: token for token in first}
    names = {token.id: token.content for token in found.values()}
    for token in second:
        known = found.get(token.content, token).id, names.get(token.id, token.content)
        if known != (token.id, token.content):
            raise TokenizerError(
                f"{token.content} has the id {token.id} in one file; another has {known[1]} with "
                f"the id {known[0]}.",
                where,
                "keep the ids that the model was trained with, in all files.",
            )
        found[token.content] = token
    for name in special:
        token = found[name].id if name in found else vocab.get(name)
        if token is None:
            raise TokenizerError(
                f"the special token {name!r} has no id in any file.",
                where,
                "copy all files of the tokenizer, or remove the token from its settings.",
            )
        found[name] = AddedToken(name, token)
    return tuple(found.values())


def _vocabulary(
    vocab: Any,
    merges: Iterable[Any],
    listed: Iterable[AddedToken],
    files: Mapping[str, bytes],
    config: Mapping[str, Any],
    where: str,
    path: str,
) -> tuple[dict[bytes, int], tuple[AddedToken, ...]]:
    """Returns the ranks and the added tokens, after checking that the merges give the ranks."""
    if not isinstance(vocab, dict) or not all(
        type(rank) is int and 0 <= rank < 1 << 31 for rank in vocab.values()
    ):
        raise _not_byte_level(path)
    added = merge_added(
        listed, added_tokens(files, config, where), special_names(config), vocab, where
    )
    names = {token.content for token in added}
    try:
        ranks = {_bytes(token): rank for token, rank in vocab.items() if token not in names}
        pairs = [(_bytes(left), _bytes(right)) for left, right in merges]
    except (KeyError, TypeError, ValueError):
        raise _not_byte_level(path) from None
    _check_unique(ranks, added, path)
    check_merges(ranks, pairs, path)
    return ranks, added


def _check_unique(ranks: Mapping[bytes, int], added: Iterable[AddedToken], path: str) -> None:
    seen: dict[int, object] = {}
    for token, rank in (*ranks.items(), *((each.content, each.id) for each in added)):
        if rank in seen:
            raise TokenizerError(
                f"{seen[rank]!r} and {token!r} have one id, {rank}.",
                path,
                "download the file again, or keep the ids that the model was trained with.",
            )
        seen[rank] = token


def _bytes(token: str) -> bytes:
    return bytes([_BYTE_OF[char] for char in token])


def _added(items: Iterable[Mapping[str, Any]], path: str) -> tuple[AddedToken, ...]:
    tokens = []
    for item in items:
        if not isinstance(item, dict) or not all(
            type(item.get(key, False)) is kind for key, kind in _TYPES.items()
        ):
            raise TokenizerError(
                f"{str(item)[:80]} is not an added token.", path, "download the file again."
            )
        for flag in _UNSUPPORTED_FLAGS:
            if item.get(flag):
                raise _refused(f"{flag} of the added token {item['content']!r}", True, path)
        flags = item.get("special", False), item.get("normalized", False)
        tokens.append(AddedToken(item["content"], item["id"], *flags))
    return tuple(tokens)


def _pattern(part: Any, path: str) -> str:
    """Returns the regular expression of a pre-tokenizer: Split, then ByteLevel without its own."""
    try:
        split, byte_level = part["pretokenizers"]
        ways = (split["behavior"], split["invert"])
        known = (
            (part["type"], split["type"], byte_level["type"]) == ("Sequence", "Split", "ByteLevel")
            and ways in (("Isolated", False), ("Removed", True))  # equal: words cover all text
            and not byte_level["add_prefix_space"]
            and byte_level.get("use_regex") is False
        )
        pattern = split["pattern"]["Regex"]
    except (KeyError, TypeError, ValueError):
        known, pattern = False, None
    if not known:
        raise _refused("the pre-tokenizer", part, path)
    if pattern not in PATTERNS:
        raise _refused("the regular expression of the pre-tokenizer", pattern, path)
    return pattern


def _nfc(part: Any, path: str) -> bool:
    """Returns whether text is normalized to NFC; otherwise it stays as it is."""
    if isinstance(part, dict) and part.get("type") == "Sequence":
        parts = part.get("normalizers") or []
        if len(parts) > 1:
            raise _refused("the normalizer", part, path)
        part = parts[0] if parts else None
    if part is not None and part != {"type": "NFC"}:
        raise _refused("the normalizer", part, path)
    return part is not None


def _check_post_processor(part: Any, path: str) -> None:
    """Refuses what adds tokens to a text. ByteLevel only concerns offsets."""
    parts = [part]
    if isinstance(part, dict) and part.get("type") == "Sequence":
        parts = part.get("processors") or []
    for each in parts:
        kind = each.get("type") if isinstance(each, dict) else each
        if kind not in (None, "ByteLevel", "TemplateProcessing") or (
            kind == "TemplateProcessing"
            and any("SpecialToken" in item for item in each.get("single") or ())
        ):
            raise _refused("the post-processor", each, path)


def _refused(what: str, value: Any, path: str) -> TokenizerError:
    return TokenizerError(
        f"{what} is not supported: {str(value)[:300]}.",
        path,
        "use a tokenizer of Qwen; ids of this one would differ from its model's.",
    )


def _not_byte_level(path: str) -> TokenizerError:
    return TokenizerError(
        "model.vocab is not a byte-level vocabulary of tokens with ids.",
        path,
        "download the file again, or pass a .tiktoken file with --tokenizer.",
    )
