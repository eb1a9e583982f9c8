"""A vocabulary learned from the last rows of a pipeline, each language with its share of the text.

Report: 2.2. The text for the merges is chosen by language and not by how large a source is.
Documents that are held out are not learned from, and compression is measured on them (Figure 3).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from qwen_jax.config import option
from qwen_jax.corpus.arrow import pc
from qwen_jax.corpus.output.mixture import parse_weights
from qwen_jax.corpus.pipeline import Result
from qwen_jax.corpus.stage_files import read_batches
from qwen_jax.data.document import Document
from qwen_jax.data.shards import Split
from qwen_jax.errors import ConfigError
from qwen_jax.tokenizer import compression, extend
from qwen_jax.tokenizer.bpe import Tokenizer, read_ranks
from qwen_jax.utils.append_only import note_made_from
from qwen_jax.utils.files import read_json, write_json

UNKNOWN = "?"  # the language of documents that name none and were not identified
_MAX_COPIES = 4  # ours: text that comes more often teaches a vocabulary its own phrases
_LINE_ENDS = re.compile(r"[\r\n]+")
_CHUNK = 10_000  # characters that are chosen together, about
_MEASURED_CHARACTERS = 1 << 20  # characters of a language that compression is measured on


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """How a vocabulary is learned. Report: 2.2."""

    size: int = option(32768, "tokens, without a base", alias="--vocab_size")
    base: str | None = option(
        None, "a .tiktoken file to extend, such as cl100k_base", alias="--base"
    )
    num_new: int | None = option(
        None, "tokens on top of the base; None: up to the released 151,643", alias="--num_new"
    )
    chinese_characters: bool = option(
        True, "on top of a base, the 3,755 common ones become tokens first"
    )
    megabytes: int = option(500, "of text to learn from", alias="--vocabulary_mb")
    # Ours: of the released tokens beyond cl100k, 24,671 are Chinese, and about 3,000 of each of the
    # next languages.
    languages: tuple[str, ...] | None = option(
        None, "LANGUAGE=WEIGHT of the text, others 1; None: zh=8 with a base"
    )
    compare: tuple[str, ...] = option((), ".tiktoken files whose compression is shown as well")

    def weights(self) -> dict[str, float]:
        given = ("zh=8",) * (self.base is not None) if self.languages is None else self.languages
        return parse_weights(given, where="--vocabulary.languages", forms="LANGUAGE=NUMBER")


@dataclasses.dataclass(frozen=True)
class Share:
    """How much of a language is learned from."""

    language: str
    weight: float
    text_bytes: int  # that there are
    copies: float  # how often each chunk of its text is read, on average


def check(config: Vocabulary) -> None:
    """Raises ConfigError or TokenizerError hours before the vocabulary is needed."""
    if not config.megabytes > 0:
        raise ConfigError(
            f"{config.megabytes} is not a size.", "--vocabulary.megabytes", "use 1 or more."
        )
    config.weights()
    for path in filter(None, (config.base, *config.compare)):
        read_ranks(path)


def learn(
    config: Vocabulary,
    result: Result,
    path: pathlib.Path,
    *,
    split: Split,
    log: Callable[[str], None],
) -> str:
    """Writes the .tiktoken file `path`, unless it is there, and returns its name.

    Raises:
      ConfigError: the file was made with other settings.
      TokenizerError: too little text, or a base with no room for new tokens.
    """
    record = path.with_suffix(".json")
    if path.exists():
        found = read_json(record) if record.exists() else {}
        note_made_from(record, _made_from(config, split, found), path)
        return str(path)
    record.unlink(missing_ok=True)  # of a vocabulary that was not finished
    note_made_from(record, _made_from(config, split, {}), path)
    chosen = shares(text_bytes(result), config.weights(), config.megabytes)
    log(table(chosen))
    chunks = tqdm(texts(result, chosen, split), unit=" chunks", desc="learning a vocabulary")
    if config.base is None:
        ranks = extend.train(chunks, vocab_size=config.size)
    else:
        base = read_ranks(config.base)
        kept = len(extend.qwen_base(base))
        characters = None if config.chinese_characters else ""
        ranks = extend.extend_like_qwen(base, chunks, num_new=config.num_new, characters=characters)
        log(
            f"{path}: {kept:,} tokens of {config.base} ({len(base) - kept:,} numbers of several "
            f"digits left out), {len(ranks) - kept:,} new ones, {len(ranks):,} in all"
        )
    Tokenizer(ranks).save(path)
    return str(path)


def compare(
    config: Vocabulary,
    result: Result,
    tokenizer: str,
    output: pathlib.Path,
    *,
    split: Split,
    log: Callable[[str], None],
) -> None:
    """Shows bytes per token by language, against the base and others; writes compression.json and
    compression.png. Report: Figure 3."""
    others = [path for path in (config.base, *config.compare) if path]
    if not others:
        return
    tokenizers = {pathlib.Path(path).stem: Tokenizer.from_file(path) for path in others}
    tokenizers["ours"] = Tokenizer.from_file(tokenizer)
    rows = compression.compression(tokenizers, measured_texts(result, split))
    log(compression.format_table(rows))
    compression.plot(rows, output / "compression.png")
    write_json(output / "compression.json", [row._asdict() for row in rows])


def text_bytes(result: Result) -> dict[str, int]:
    """Bytes of text that were kept of each language."""
    found: dict[str, int] = {}
    for number in range(result.partitions):
        for batch in read_batches(result.folder.kept(number), ["language", "text"]):
            sizes = batch.set_column(1, "bytes", pc.binary_length(batch["text"]))
            for row in sizes.group_by("language").aggregate([("bytes", "sum")]).to_pylist():
                name = row["language"] or UNKNOWN
                found[name] = found.get(name, 0) + (row["bytes_sum"] or 0)
    return found


def shares(sizes: Mapping[str, int], weights: Mapping[str, float], megabytes: float) -> list[Share]:
    """How often the text of each language is read, so that the weights are its shares.

    A language with too little text is read up to four times, and then has less than its share.

    Args:
      sizes: bytes of text by language.
      weights: by language; 1 of those that are not named.
      megabytes: of text in all, or all text if there is less.
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
    """The shares as Markdown."""
    total = sum(share.text_bytes * share.copies for share in chosen) or 1.0
    lines = [
        "| language | weight | text MB | read | share of the vocabulary's text |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {share.language} | {share.weight:g} | {share.text_bytes / 1e6:,.2f} | "
        f"{share.copies:.3g} times | {share.text_bytes * share.copies / total:.1%} |"
        for share in chosen
    ]
    return "\n".join(lines)


def texts(result: Result, chosen: list[Share], split: Split) -> Iterator[str]:
    """The text to learn from, in chunks; what is held out is not learned from.

    Of a language that is read 0.25 times, every fourth chunk comes.
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
    """Held-out text of each language, the largest language first, for compression to be measured.

    A language of which nothing is held out has the text that was learned from, and says so.
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
    """What the vocabulary depends on, as JSON, in the form of `found`."""
    if "vocab_size" in found:  # by a former version: num_new had a value without a base as well
        return {
            "vocab_size": config.size,
            "base": config.base,
            "num_new": config.num_new if config.base else found["num_new"],
            "vocabulary_mb": config.megabytes,
        }
    settings = dataclasses.asdict(config) | {"eval_fraction": split.eval_fraction}
    del settings["compare"]
    return settings | {"seed": split.seed}


def _documents(result: Result) -> Iterator[tuple[Document, str]]:
    """Every row that was kept, and its language."""
    names = ["id", "text", "group", "language"]
    for number in range(result.partitions):
        for batch in read_batches(result.folder.kept(number), names):
            columns = (batch[name].to_pylist() for name in names)
            for *fields, language in zip(*columns, strict=True):
                yield Document(*fields), language or UNKNOWN


def _held_out(document: Document, split: Split) -> bool:
    return split.place(document)[0] == split.num_shards


def _chunks(text: str) -> Iterator[str]:
    """`text` in parts that end where lines do. Runs of line ends are words, and are not cut."""
    start = 0
    while start < len(text):
        found = _LINE_ENDS.search(text, start + _CHUNK)
        end = found.end() if found else len(text)
        yield text[start:end]
        start = end
