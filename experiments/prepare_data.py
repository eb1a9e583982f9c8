"""From raw text, code and web pages to token shards: one plan. Report: 2.1, 2.2, 2.4.

Reads sources, takes their documents through the stages of OUTPUT/plan.json (every one leaves its
rows, what it rejected and why, and counts), and writes OUTPUT/shards/SOURCE/train and eval, which
experiments.pretrain reads. Kill it anywhere and run the same command again: it goes on behind what
is finished, and ends with the same bytes, on one worker or many, on this computer or on Ray.

A folder of your own:  python -m experiments.prepare_data --sources=FOLDER --output=data/mine
Several, by kind:      ... --sources=web=web:crawl,code=code:repositories,python:docs
                       kinds: web, code, documentation, text, instruction; else by suffix
Common Crawl:          ... --sources=web:s3://commoncrawl/crawl-data/.../warc --ray=ADDRESS
Text as it is:         --recipe=unfiltered
Released vocabulary:   ... --tokenizer=qwen.tiktoken
Qwen's way (2.2):      ... --vocabulary.base=cl100k_base.tiktoken
Then:                  python -m experiments.pretrain --data.sources=data/mine/shards/web/train ...
"""

import dataclasses
import os
import pathlib
from typing import Literal

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus import engine, pipeline, source_files, stage_files
from qwen_jax.corpus.dedup.exact import ExactDedup
from qwen_jax.corpus.dedup.near import NearDedup
from qwen_jax.corpus.filters.decontaminate import DecontaminationStage, Index
from qwen_jax.corpus.filters.language import Language
from qwen_jax.corpus.filters.linear import LinearFilterStage
from qwen_jax.corpus.filters.perplexity import CheckpointPerplexityStage, PerplexityStage
from qwen_jax.corpus.filters.pii import PersonalStage
from qwen_jax.corpus.filters.quality_rules import QualityStage
from qwen_jax.corpus.filters.test_items import read_test_sets
from qwen_jax.corpus.output import mixture, review, vocabulary
from qwen_jax.corpus.output.tokenize import sizes, tokenize
from qwen_jax.corpus.output.vocabulary import Vocabulary
from qwen_jax.corpus.sources.read import Read
from qwen_jax.data import shards
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.tokenizer.bpe import read_ranks
from qwen_jax.utils.append_only import note_made_from
from qwen_jax.utils.files import write_bytes, write_text


@dataclasses.dataclass(frozen=True)
class Filters:
    """What is rejected for its quality; models are made by experiments.train_filter."""

    rules: bool = option(True, "Gopher, C4 and FineWeb, with their Chinese and code counterparts")
    quality_model: str | None = option(None, ".npz: keeps what it marks as good")
    offensive_model: str | None = option(None, ".npz: rejects what it marks")
    perplexity: tuple[str, ...] = option((), "LANGUAGE=MODEL.npz, counted in --tokenizer")
    checkpoint: str | None = option(None, "a run folder or a released Qwen that judges perplexity")
    checkpoint_min_bpb: float = option(
        0.0, "bits per byte by --filters.checkpoint; less is too easy", alias="checkpoint_least"
    )
    checkpoint_max_bpb: float | None = option(
        None,
        "more bits per byte is too strange; read it off scores of good text",
        alias="checkpoint_most",
    )
    mask_pii: bool = option(True, "mask e-mail addresses, numbers and keys", alias="personal")
    test_sets: str | None = option(None, "folder of test sets whose 13-grams no document may have")


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How often documents come. Report: 2.1."""

    weights: tuple[str, ...] = option((), "SOURCE=2 or SOURCE:LANGUAGE=1.5")
    instructions: tuple[str, ...] = option(
        (), "sources that are instruction data: their share is told"
    )
    max_epochs: float = option(
        mixture.Mixture.max_epochs,
        "a weight above it needs --mixture.allow_epochs",
        alias="most_epochs",
    )
    allow_epochs: tuple[str, ...] = option((), "sources that have it")


@dataclasses.dataclass(frozen=True)
class Config:
    """One corpus."""

    sources: tuple[str, ...] = option((), "[NAME=][KIND:]PATH; of equal documents the first stays")
    output: str = option("", "a folder; an interrupted run goes on in it")
    read: Read = Read()
    identify_language: bool = option(True, "of each document", alias="languages")
    language: Language = Language()
    exact_dedup: tuple[Literal["url", "document", "paragraph"], ...] = option(
        (
            "url",
            "document",
        ),
        "what may come once",
    )
    near_dedup: bool = option(True, "and not exact duplicates alone")
    minhash: NearDedup = NearDedup()
    filters: Filters = Filters()
    mixture: Mixing = Mixing()
    tokenizer: str | None = option(None, "a .tiktoken file; None: learn a vocabulary")
    vocabulary: Vocabulary = Vocabulary()
    eval_fraction: float = option(0.01, "of the documents, held out")
    shard_tokens: float = option(1e8, "tokens in one file, about")
    seed: int = option(0, "of the order of documents and of what is held out")
    partition_mb: float = option(64.0, "of source files that one task reads")
    workers: int = option(
        os.cpu_count() or 1, "processes, or actors on Ray; 0: none beside this one"
    )
    ray: str | None = option(None, "address of a cluster; local: one on this computer")


RECIPE = Config()
UNFILTERED = dataclasses.replace(  # text that is good already: nothing but reading and encoding
    RECIPE,
    identify_language=False,
    exact_dedup=(),
    near_dedup=False,
    filters=Filters(rules=False, mask_pii=False),
)
SMOKE = dataclasses.replace(
    RECIPE,
    sources=("code:" + str(pathlib.Path(engine.__file__).parent),),
    vocabulary=Vocabulary(size=600),
    output="runs/prepare_data_smoke",
    workers=0,
)
RECIPES = {
    "default": RECIPE,
    "unfiltered": UNFILTERED,
    "plain": "unfiltered",  # its former name
    "smoke": SMOKE,
}


def main(config: Config) -> None:
    """Raises DataError where the system refuses what is not a task's: a full disk, mostly."""
    check(config)
    try:
        prepare(config)
    except OSError as error:
        raise DataError(
            f"{error.strerror or error}.",
            error.filename or config.output,
            "mend it and run the same command again: what is finished is kept.",
        ) from error


def prepare(config: Config) -> None:
    """The plan, a page for people, a vocabulary unless there is one, the mixture, the shards."""
    engine.start(config.ray)
    settings = config.mixture
    mixed = mixture.Mixture(
        weights=mixture.parse_weights(settings.weights),
        instructions=settings.instructions,
        max_epochs=settings.max_epochs,
        allow_epochs=settings.allow_epochs,
    )
    output = pathlib.Path(config.output)
    result = pipeline.run(
        config.sources,
        stages(config),
        config.output,
        workers=config.workers,
        partition_mb=config.partition_mb,
        log=log,
    )
    for line in pipeline.throughput(result.seconds):
        log(line)
    write_text(output / "review.html", review.page(review.sample(rows(result))))
    log(f"{output}/review.html: what was kept and rejected, to judge in a browser")
    if not result.counts[result.folder.path.name]["kept"]["documents"]:
        raise DataError(
            "nothing is left of any source.",
            str(output),
            "counts.json says which rules rejected it, review.html shows examples.",
        )
    split = shards.Split(config.eval_fraction, config.seed)
    tokenizer = config.tokenizer or vocabulary.learn(
        config.vocabulary, result, output / "tokenizer.tiktoken", split=split, log=log
    )
    vocabulary.compare(config.vocabulary, result, tokenizer, output, split=split, log=log)
    parts = mixture.entries(sizes(result, tokenizer), mixed)
    log(mixture.table(parts, mixed))
    write_bytes(output / "mixture.png", mixture.draw(parts))
    tokenize(
        result,
        str(output / "shards"),
        tokenizer,
        workers=config.workers,
        log=log,
        mixture=mixed,
        split=split,
        shard_tokens=config.shard_tokens,
    )
    named = []
    for folder in sorted((output / "shards").glob("*/*/")):
        made = shards.open_shards(folder)
        named += [f"{folder}={made.tokens / 1e6:g}"] * (folder.name == "train")
        log(
            f"{folder}: {made.documents:,} documents, {made.tokens:,} tokens, "
            f"{made.bytes_per_token:.2f} bytes per token"
        )
    log(f"python -m {__package__}.pretrain --data.sources={','.join(named)}")


def stages(config: Config) -> list:
    """The stages in their order. Report: 2.1."""
    filters = config.filters
    stages: list = [config.read]
    stages += [config.language] if config.identify_language else []
    stages += [ExactDedup(by) for by in config.exact_dedup]
    stages += [config.minhash] if config.near_dedup else []
    stages += [QualityStage()] if filters.rules else []
    if filters.perplexity:
        assert config.tokenizer is not None  # see check
        named = (text.partition("=") for text in filters.perplexity)
        models = tuple((language, path) for language, _, path in named)
        stages.append(PerplexityStage(models, config.tokenizer))
    if filters.checkpoint:
        assert filters.checkpoint_max_bpb is not None  # see check
        stages.append(
            CheckpointPerplexityStage(
                filters.checkpoint, filters.checkpoint_max_bpb, filters.checkpoint_min_bpb
            )
        )
    if filters.quality_model:
        stages.append(LinearFilterStage(filters.quality_model, "quality", keep_marked=True))
    if filters.offensive_model:
        stages.append(LinearFilterStage(filters.offensive_model, "offensive", keep_marked=False))
    stages += [PersonalStage()] if filters.mask_pii else []
    if filters.test_sets:
        path = pathlib.Path(config.output) / "test_sets.npz"
        note_made_from(
            path.with_suffix(".json"),
            {
                "test_sets": [
                    str(pathlib.Path(filters.test_sets).resolve()),
                    *map(dataclasses.astuple, source_files.listing(filters.test_sets)),
                ]
            },
            path,
        )
        if not path.exists():
            Index.build(read_test_sets(filters.test_sets)).save(path)
        stages.append(DecontaminationStage(str(path)))
    return stages


def rows(result: pipeline.Result):
    """What the last stage kept and what every stage rejected."""
    for folder in result.folders:
        for number in range(result.partitions):
            for table in stage_files.read_batches(folder.rejected(number)):
                yield from table.to_pylist()
    for number in range(result.partitions):
        for table in stage_files.read_batches(result.folder.kept(number)):
            yield from table.to_pylist()


def log(line: str) -> None:
    print(line, flush=True)


def check(config: Config) -> None:
    """Raises ConfigError for settings that cannot be right together."""
    if not config.sources or not config.output:
        raise ConfigError(
            "nothing to read, or nowhere to write.",
            "--sources, --output",
            "name both; --help shows how.",
        )
    for name in ("partition_mb", "shard_tokens"):
        if not getattr(config, name) > 0:
            raise ConfigError(
                f"{getattr(config, name)} is no size.", f"--{name}", "use a number above 0."
            )
    if not 0 <= config.eval_fraction < 1:
        raise ConfigError(
            f"{config.eval_fraction} of the documents cannot be held out.",
            "--eval_fraction",
            "use 0, or a number below 1.",
        )
    if config.tokenizer and config.vocabulary.base:
        raise ConfigError(
            "a finished vocabulary is not grown.",
            "--tokenizer, --vocabulary.base",
            "give one of the two.",
        )
    if config.filters.perplexity and not config.tokenizer:
        raise ConfigError(
            "perplexity is counted in a vocabulary that is there already.",
            "--filters.perplexity",
            "name it with --tokenizer.",
        )
    if config.filters.checkpoint and config.filters.checkpoint_max_bpb is None:
        raise ConfigError(
            "--filters.checkpoint needs a limit on bits per byte.",
            "--filters.checkpoint_max_bpb",
            "give a number; inf scores every text and keeps all.",
        )
    vocabulary.check(config.vocabulary)
    if config.tokenizer:
        read_ranks(config.tokenizer)  # hours before it is needed


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
