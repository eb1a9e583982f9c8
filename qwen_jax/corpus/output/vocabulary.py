"""Trains a vocabulary on the pipeline's output, with a weight for each language.

Report: 2.2. The training text is sampled by language, independently of the size of the sources.
Held-out documents are excluded; compression is measured on them (Figure 3).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from qwen_jax.config import ModelConfig, option
from qwen_jax.corpus.arrow import pc
from qwen_jax.corpus.output.mixture import parse_weights
from qwen_jax.corpus.pipeline import Result
from qwen_jax.corpus.stage_files import read_batches
from qwen_jax.data.document import Document
from qwen_jax.data.split import Split
from qwen_jax.errors import ConfigError
from qwen_jax.ranges import ONE_OR_MORE, Checked, limits_of
from qwen_jax.tokenizer import compression, extend
from qwen_jax.tokenizer.bpe import Tokenizer, read_ranks
from qwen_jax.tokenizer.carry import has_settings, save_tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.utils.append_only import record_provenance
from qwen_jax.utils.files import read_json, write_json

UNKNOWN = "?"  # the language of documents whose language is unknown
_SIZE = 32768  # ours
_MAX_COPIES = 4  # ours: more repetition would put phrases of the text into the vocabulary
_LINE_ENDS = re.compile(r"[\r\n]+")
_CHUNK = 10_000  # approximate number of characters per sampled chunk
_MEASURED_CHARACTERS = 1 << 20  # characters per language for measuring compression


@dataclasses.dataclass(frozen=True)
class Vocabulary(Checked, where="--vocabulary.{}"):
    """Settings of vocabulary training. Report: 2.2."""

    size: int | None = option(
        None,
        f"number of tokens of a vocabulary trained without --vocabulary.base; None: {_SIZE:,}, or "
        "fewer if there is too little text",
        limits_of(ModelConfig, "vocab_size"),
        alias="--vocab_size",
    )
    base: str | None = option(
        None,
        "vocabulary to extend: a .tiktoken file, such as cl100k_base, or a tokenizer with "
        "settings, which keeps its ids and added tokens; None: train from scratch",
        alias="--base",
    )
    num_new: int | None = option(
        None,
        "number of tokens to add to the base; None: up to the released 151,643, or fewer if there "
        "is too little text",
        limits_of(ModelConfig, "vocab_size"),
        alias="--num_new",
    )
    chinese_characters: bool = option(
        True, "add the 3,755 most common Chinese characters as tokens first (only with a base)"
    )
    megabytes: int = option(500, "MB of text to train on", ONE_OR_MORE, alias="--vocabulary_mb")
    # Ours: of the tokens that the released vocabulary adds to cl100k, 24,671 are Chinese. Each of
    # the next languages has about 3,000.
    languages: tuple[str, ...] | None = option(
        None,
        "language weights in the training text as LANGUAGE=WEIGHT, default 1; None: zh=8 with a "
        "base",
    )
    compare: tuple[str, ...] = option(
        (), "folders or files of tokenizers to compare the compression with"
    )

    def characters(self) -> str | None:
        """Returns the argument `characters` of extend.extend_like_qwen."""
        return None if self.chinese_characters else ""

    def weights(self) -> dict[str, float]:
        given = ("zh=8",) * (self.base is not None) if self.languages is None else self.languages
        return parse_weights(given, where="--vocabulary.languages", forms="LANGUAGE=NUMBER")


@dataclasses.dataclass(frozen=True)
class Share:
    """How much text of a language is used for training."""

    language: str
    weight: float
    text_bytes: int  # bytes of available text
    copies: float  # mean number of times each chunk of text is used


def check(config: Vocabulary) -> None:
    """Validates the settings at startup, long before the vocabulary is trained.

    Raises:
      ConfigError: a setting has an invalid value.
      TokenizerError: a tokenizer cannot be read, or cannot grow.
    """
    config.weights()
    for path in config.compare:
        load_tokenizer(path)
    unused = {
        "--vocabulary.size": config.base and config.size is not None,
        "--vocabulary.num_new": not config.base and config.num_new is not None,
        "--vocabulary.chinese_characters": not config.base and not config.chinese_characters,
    }
    for flag in (flag for flag, is_set in unused.items() if is_set):
        raise ConfigError(
            f"{flag} has no effect {'with' if config.base else 'without'} --vocabulary.base.",
            flag,
            f"remove it; {'--vocabulary.num_new' if config.base else '--vocabulary.size'} sets the "
            "size of the vocabulary.",
        )
    if (whole := _whole(config)) is not None:
        extend.check_growable(whole)
        if config.num_new is None:
            raise ConfigError(
                "the base keeps its ids and added tokens, so there is no size to grow to.",
                "--vocabulary.num_new",
                "set the number of tokens to add.",
            )
    elif config.base:
        extend.room(_ranks(config.base), config.num_new, config.characters())
    elif config.size is not None and config.size <= 256:
        raise ConfigError(
            f"{config.size} tokens leave no room for merges after the 256 bytes.",
            "--vocabulary.size",
            "use more than 256.",
        )


def learn(
    config: Vocabulary,
    result: Result,
    path: pathlib.Path,
    *,
    split: Split,
    log: Callable[[str], None],
) -> str:
    """Trains a vocabulary, writes it to the .tiktoken file `path` and returns that path.

    A base with settings is extended in a folder next to it, which is then returned. An existing
    vocabulary with the same settings is reused.

    Raises:
      ConfigError: the file was written with different settings.
      TokenizerError: there is too little text, or the base has no room for new tokens.
    """
    record, whole = path.with_suffix(".json"), _whole(config)
    path = path if whole is None else path.with_suffix("")
    if path.exists():
        found = read_json(record, finite=False) if record.exists() else {}
        fix = f"use another --output, or delete this, {record.name} and the shards made with it."
        record_provenance(record, _made_from(config, split, found), path, fix=fix)
        if config.size and len(read_ranks(path)) != config.size:  # made when the default was used
            raise ConfigError(
                f"the vocabulary has {len(read_ranks(path)):,} tokens, not {config.size:,}.",
                str(path),
                f"delete it to train another one, or remove --vocabulary.size={config.size}.",
            )
        return str(path)
    record.unlink(missing_ok=True)  # left over from an unfinished vocabulary
    record_provenance(record, _made_from(config, split, {}), path)
    chosen = shares(text_bytes(result), config.weights(), config.megabytes)
    log(table(chosen))
    chunks = tqdm(texts(result, chosen, split), unit=" chunks", desc="training a vocabulary")
    if whole is not None:
        _grow(config, whole, chunks, path, log)
        return str(path)
    if config.base is None:
        size = config.size or _SIZE
        ranks = extend.train(chunks, vocab_size=size, allow_fewer=config.size is None)
        if len(ranks) < size:
            log(
                f"{path}: {len(ranks):,} tokens; there is too little text for {size:,} "
                "(--vocabulary.size)"
            )
    else:
        base = _ranks(config.base)
        kept = len(extend.qwen_base(base))
        ranks = extend.extend_like_qwen(
            base, chunks, num_new=config.num_new, characters=config.characters()
        )
        log(
            f"{path}: {kept:,} tokens of {config.base} (without {len(base) - kept:,} multi-digit "
            f"numbers), {len(ranks) - kept:,} new tokens, {len(ranks):,} in total"
        )
    Tokenizer(ranks).save(path)
    return str(path)


def _whole(config: Vocabulary) -> Tokenizer | None:
    """Returns the base if it has settings, which are kept; None: it is only a vocabulary."""
    if config.base is None or config.base.endswith(".tiktoken"):
        return None
    base = load_tokenizer(config.base)
    return base if has_settings(base) else None


def _ranks(base: str) -> Mapping[bytes, int]:
    return load_tokenizer(base).mergeable_ranks


def _grow(
    config: Vocabulary,
    base: Tokenizer,
    chunks: Iterable[str],
    path: pathlib.Path,
    log: Callable[[str], None],
) -> None:
    """Writes a folder with the files of the base and more merges."""
    assert config.num_new is not None, "see check"
    characters = extend.common_chinese() if config.chinese_characters else ""
    grown = extend.grow_tokenizer(
        base,
        chunks,
        num_new=config.num_new,
        characters=characters,
        setting=("--vocabulary.num_new", 0),
    )
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_tokenizer(partial, grown)
    partial.rename(path)
    log(
        f"{path}: the ids of {config.base}, {config.num_new:,} new tokens from "
        f"{base.vocab_size:,} on, {grown.vocab_size:,} in total"
    )


def compare(
    config: Vocabulary,
    result: Result,
    tokenizer: str,
    output: pathlib.Path,
    *,
    split: Split,
    log: Callable[[str], None],
) -> None:
    """Logs bytes per token by language, next to those of other vocabularies. Report: Figure 3.

    Writes compression.json and compression.png.
    """
    others = [path for path in (config.base, *config.compare) if path]
    if not others:
        return
    tokenizers = {pathlib.Path(path).stem: load_tokenizer(path) for path in others}
    tokenizers["ours"] = load_tokenizer(tokenizer)
    rows = compression.compression(tokenizers, measured_texts(result, split))
    log(compression.format_table(rows))
    compression.plot(rows, output / "compression.png")
    write_json(output / "compression.json", [row._asdict() for row in rows])


def text_bytes(result: Result) -> dict[str, int]:
    """Returns the number of bytes of kept text by language."""
    found: dict[str, int] = {}
    for number in range(result.partitions):
        for batch in read_batches(result.folder.kept(number), ["language", "text"]):
            sizes = batch.set_column(1, "bytes", pc.binary_length(batch["text"]))
            for row in sizes.group_by("language").aggregate([("bytes", "sum")]).to_pylist():
                name = row["language"] or UNKNOWN
                found[name] = found.get(name, 0) + (row["bytes_sum"] or 0)
    return found


def shares(sizes: Mapping[str, int], weights: Mapping[str, float], megabytes: float) -> list[Share]:
    """Returns how often to use each language's text for fractions proportional to the weights.

    Text is used at most four times; a language with too little text falls short of its fraction.

    Args:
      sizes: bytes of text by language.
      weights: weights by language; the default is 1.
      megabytes: MB of training text in total; all available text if there is less.
    """
    named = {name: weights.get(name, 1.0) for name in [*sizes, *weights]}
    present = sum(weight for name, weight in named.items() if sizes.get(name)) or 1.0
    total = min(megabytes * 1e6, sum(sizes.values()))
    found = []
    for name, weight in named.items():
        size = sizes.get(name, 0)
        copies = min(_MAX_COPIES, total * weight / present / size) if size else 0.0
        found.append(Share(name, weight, size, copies))
    return sorted(found, key=lambda share: (-share.text_bytes * share.copies, share.language))


def table(chosen: list[Share]) -> str:
    """Returns each language's part of the training text as a Markdown table."""
    total = sum(share.text_bytes * share.copies for share in chosen) or 1.0
    lines = [
        "| language | weight | text MB | used | fraction of the vocabulary's text |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {share.language} | {share.weight:g} | {share.text_bytes / 1e6:,.2f} | "
        f"{share.copies:.3g} times | {share.text_bytes * share.copies / total:.1%} |"
        for share in chosen
    ]
    return "\n".join(lines)


def texts(result: Result, chosen: list[Share], split: Split) -> Iterator[str]:
    """Yields the training text in chunks, without held-out documents.

    For a language with 0.25 copies, it yields every fourth chunk.
    """
    copies = {share.language: share.copies for share in chosen}
    owed = dict.fromkeys(copies, 0.5)
    for document, language in _documents(result):
        if copies[language] and not _held_out(document, split):
            for chunk in _chunks(document.text):
                owed[language] += copies[language]
                for _ in range(int(owed[language])):
                    yield chunk
                owed[language] %= 1


def measured_texts(result: Result, split: Split) -> dict[str, list[str]]:
    """Returns held-out text by language, largest first, for measuring compression.

    A language without held-out text gets training text, and "(seen)" is added to its name.
    """
    found: dict[tuple[str, bool], list[str]] = {}
    sizes: dict[tuple[str, bool], int] = {}
    for document, language in _documents(result):
        part = language, _held_out(document, split)
        if sizes.get(part, 0) < _MEASURED_CHARACTERS:
            text = document.text[:_MEASURED_CHARACTERS]
            found.setdefault(part, []).append(text)
            sizes[part] = sizes.get(part, 0) + len(text)
    languages = {language for language, _ in found}
    texts = {}
    for language in sorted(languages, key=lambda each: (-sizes.get((each, False), 0), each)):
        if (language, True) in found:
            texts[language] = found[language, True]
        else:
            texts[f"{language} (seen)"] = found[language, False]
    return texts


def _made_from(config: Vocabulary, split: Split, found: Mapping[str, Any]) -> dict:
    """Returns the settings that the vocabulary depends on, in the format of the record `found`."""
    if "vocab_size" in found:  # an earlier version recorded num_new even without a base
        return {
            "vocab_size": config.size or _SIZE,
            "base": config.base,
            "num_new": config.num_new if config.base else found["num_new"],
            "vocabulary_mb": config.megabytes,
        }
    settings = dataclasses.asdict(config) | {"eval_fraction": split.eval_fraction}
    del settings["compare"]
    settings["size"] = config.size or _SIZE
    return settings | {"seed": split.seed}


def _documents(result: Result) -> Iterator[tuple[Document, str]]:
    """Yields every kept document with its language."""
    names = ["id", "text", "group", "language"]
    for number in range(result.partitions):
        for batch in read_batches(result.folder.kept(number), names):
            columns = (batch[name].to_pylist() for name in names)
            for *fields, language in zip(*columns, strict=True):
                yield Document(*fields), language or UNKNOWN


def _held_out(document: Document, split: Split) -> bool:
    return split.assign(document)[0] == split.num_shards


def _chunks(text: str) -> Iterator[str]:
    """Splits `text` at line ends; a run of line ends is one pre-token and is not split."""
    start = 0
    while start < len(text):
        found = _LINE_ENDS.search(text, start + _CHUNK)
        end = found.end() if found else len(text)
        yield text[start:end]
        start = end
