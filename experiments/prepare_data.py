"""Prepares token shards from raw text, code and web pages. Report: 2.1, 2.2, 2.4.

Reads sources, passes their documents through a pipeline of stages, and writes the shards
OUTPUT/shards/SOURCE/train and eval for experiments.pretrain. Every stage writes the documents it
kept, the documents it rejected with reasons, and counts. To resume a killed run, run the same
command again. The output is the same, byte for byte, with any number of workers, on this machine or
on Ray.

A folder of your own:  python -m experiments.prepare_data --sources=FOLDER --output=data/mine
Several, by kind:      ... --sources=web=web:crawl,code=code:repositories,python:docs
                       kinds: web, code, documentation, text, instruction; default: from the suffix
Common Crawl:          ... --sources=web:s3://commoncrawl/crawl-data/.../warc --ray=ADDRESS
Without filters:       --recipe=unfiltered
Code (4.1):            --recipe=code, which keeps the files of a repository together, in their order
Released vocabulary:   ... --tokenizer=qwen.tiktoken
Qwen's way (2.2):      ... --vocabulary.base=cl100k_base.tiktoken
Then:                  python -m experiments.pretrain --data.sources=data/mine/shards/web/train ...
"""

import dataclasses
import os
import pathlib
import shlex
from importlib.util import find_spec
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
from qwen_jax.corpus.filters.task_items import read_tasks
from qwen_jax.corpus.filters.test_items import read_test_sets
from qwen_jax.corpus.output import mixture, review, vocabulary
from qwen_jax.corpus.output.tokenize import balanced, sizes, tokenize
from qwen_jax.corpus.output.vocabulary import Vocabulary
from qwen_jax.corpus.sources.read import Read
from qwen_jax.corpus.sources.repositories import RepositoryStage
from qwen_jax.data import shards
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.ranges import ABOVE_ZERO, SEED, ZERO_OR_MORE, Checked, Range
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.utils.append_only import record_provenance
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.files import write_bytes, write_text


@dataclasses.dataclass(frozen=True)
class Filters(Checked, where="--filters.{}"):
    """Quality filters; experiments.train_filter trains the models."""

    rules: bool = option(
        True, "apply the rules of Gopher, C4 and FineWeb, with counterparts for Chinese and code"
    )
    quality_model: str | None = option(
        None, ".npz filter: keep only documents that it marks as good; None: off"
    )
    offensive_model: str | None = option(
        None, ".npz filter: reject documents that it marks as offensive; None: off"
    )
    perplexity: tuple[str, ...] = option(
        (), "n-gram models over --tokenizer, as LANGUAGE=MODEL.npz; they reject outliers"
    )
    checkpoint: str | None = option(
        None, "run folder or released Qwen whose bits per byte filter texts; None: off"
    )
    checkpoint_min_bpb: float = option(
        0.0,
        "lower limit of bits per byte by --filters.checkpoint; rejects boilerplate",
        ZERO_OR_MORE,
        alias="checkpoint_least",
    )
    checkpoint_max_bpb: float | None = option(
        None,
        "upper limit of bits per byte by --filters.checkpoint; choose it from scores of good text",
        Range(above=0, infinite=True),
        alias="checkpoint_most",
    )
    mask_pii: bool = option(True, "mask e-mail addresses, numbers and keys", alias="personal")
    test_sets: str | None = option(
        None, "folder of test sets: reject documents that share a 13-gram; None: off"
    )
    test_tasks: tuple[str, ...] = option(
        (),
        "tasks of experiments.evaluate to read from --filters.test_sets; empty: all of its files",
    )


@dataclasses.dataclass(frozen=True)
class Mixing(Checked, where="--mixture.{}"):
    """Settings of the mixture of sources. Report: 2.1."""

    weights: tuple[str, ...] = option(
        (), "mixture weights as SOURCE=2 or SOURCE:LANGUAGE=1.5; default 1"
    )
    instructions: tuple[str, ...] = option(
        (), "names of the sources with instruction data; their share is logged"
    )
    max_epochs: float = option(
        mixture.Mixture.max_epochs,
        "maximum mixture weight; a higher one needs --mixture.allow_epochs",
        ZERO_OR_MORE,
        alias="most_epochs",
    )
    allow_epochs: tuple[str, ...] = option(
        (), "names of sources that may exceed --mixture.max_epochs"
    )


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of the corpus pipeline."""

    sources: tuple[str, ...] = option(
        (), "inputs as [NAME=][KIND:]PATH; of duplicate documents, the first is kept", kind="url"
    )
    output: str = option("", "output folder; a killed run resumes in it")
    read: Read = Read()
    repositories: bool = option(
        False,
        "keep the files of a repository of code together, in the order of their names. It is named "
        "by a row (repo_name, ...), or is the first folder under the source",
    )
    identify_language: bool = option(
        True, "detect the language of each document", alias="languages"
    )
    language: Language = Language()
    exact_dedup: tuple[Literal["url", "document", "paragraph"], ...] = option(
        ("url", "document"),
        "keys of exact deduplication, applied in this order; empty: off",
    )
    near_dedup: bool = option(True, "remove near duplicates (MinHash)")
    minhash: NearDedup = NearDedup()
    filters: Filters = Filters()
    mixture: Mixing = Mixing()
    tokenizer: str | None = option(None, "folder or file of a tokenizer; None: train a vocabulary")
    vocabulary: Vocabulary = Vocabulary()
    eval_fraction: float = option(
        0.01,
        "fraction of the documents to hold out, but at least one of each source; 0: none",
        Range(0, below=1),
    )
    shard_tokens: float = option(1e8, "approximate tokens per shard", Range(1))
    seed: int = option(0, "random seed of the document order and the held-out split", SEED)
    partition_mb: float = option(64.0, "MB of source files per task", ABOVE_ZERO)
    workers: int = option(
        os.cpu_count() or 1,
        "number of processes, or of actors on Ray; 0: run in this process",
        ZERO_OR_MORE,
    )
    ray: str | None = option(
        None,
        'address of a Ray cluster, or "local" to start one here; None: local processes',
        kind="url",
    )


RECIPE = Config()
UNFILTERED = dataclasses.replace(  # for clean text, which is only read and tokenized
    RECIPE,
    identify_language=False,
    exact_dedup=(),
    near_dedup=False,
    filters=Filters(rules=False, mask_pii=False),
)
CODE = dataclasses.replace(RECIPE, repositories=True)  # for experiments.code_qwen
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
    "plain": "unfiltered",  # former name
    "code": CODE,
    "smoke": SMOKE,
}


@keep_going()
def main(config: Config) -> None:
    """Prepares a corpus.

    Raises:
      DataError: an operating system error outside a task, often a full disk.
    """
    check(config)
    try:
        prepare(config)
    except OSError as error:
        raise DataError(
            f"{error.strerror or error}.",
            error.filename or config.output,
            "fix the cause (often a full disk) and run the same command again to resume.",
        ) from error


def prepare(config: Config) -> None:
    """Runs the pipeline, then writes the review page, vocabulary, mixture and token shards."""
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
    write_text(output / "review.html", review.page(review.sample(reviewable_rows(result))))
    log(f"{output}/review.html: a sample of kept and rejected documents to review in a browser")
    if not result.counts[result.folder.path.name]["kept"]["documents"]:
        raise nothing_left(result.counts, output)
    if line := loss(result.counts):
        log(line)
    split = balanced(
        result,
        shards.Split(config.eval_fraction, config.seed, together=config.repositories),
    )
    tokenizer = config.tokenizer or vocabulary.learn(
        config.vocabulary, result, output / "tokenizer.tiktoken", split=split, log=log
    )
    vocabulary.compare(config.vocabulary, result, tokenizer, output, split=split, log=log)
    entries = mixture.entries(sizes(result, tokenizer), mixed)
    log(mixture.table(entries, mixed))
    write_bytes(output / "mixture.png", mixture.draw(entries))
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
    log(pretrain_command(output / "shards"))


def nothing_left(counts: dict[str, dict], output: pathlib.Path) -> DataError:
    """Returns the error for data without a document that is left."""
    read = next(iter(counts.values()))  # the reader is the first stage
    if not read["kept"]["documents"]:
        reasons = [f"{each['documents']:,} {name}" for name, each in read["rejected"].items()]
        found = f": {', '.join(reasons)}" if reasons else ""
        return DataError(
            f"no text was found in the files{found}.",
            str(output),
            "the line of the reader (01-read) above names the first of them. Files may be empty, "
            "or have their text under another name (--read.text_field). Conversations go to "
            "experiments.sft.",
        )
    return DataError(
        "the filters rejected every document.",
        str(output),
        "see counts.json for the rules that rejected them and review.html for examples; "
        "--recipe=unfiltered takes text as it is.",
    )


def loss(counts: dict[str, dict]) -> str:
    """Returns a hint if fewer than half of the documents that were read are left, otherwise ""."""
    kept = [stage["kept"]["documents"] for stage in counts.values()]
    read, last = kept[0], kept[-1]
    if last * 2 >= read:
        return ""
    return (
        f"hint: only {last:,} of {read:,} documents are left; review.html has examples of what "
        "each rule rejected, and --recipe=unfiltered takes text as it is"
    )


def pretrain_command(folder: pathlib.Path) -> str:
    """Logs the contents of the shards; returns a command that trains on them."""
    vocab_size = 0
    sources: dict[str, list[str]] = {"train": [], "eval": []}
    several = len(list(folder.glob("*/train/"))) > 1
    for side in sorted(folder.glob("*/*/")):
        made = shards.open_shards(side)
        weight = f"={made.tokens / 1e6:g}" if side.name == "train" and several else ""
        vocab_size = made.vocab_size
        sources[side.name].append(f"{side}{weight}")
        log(
            f"{side}: {made.documents:,} documents, {made.tokens:,} tokens, "
            f"{made.bytes_per_token:.2f} bytes per token"
        )
    arguments = [f"--data.sources={flags.join_list(sources['train'])}"]
    if sources["eval"]:
        arguments.append(f"--data.eval_sources={flags.join_list(sources['eval'])}")
    arguments.append(f"--run_dir=runs/{folder.resolve().parent.name}")
    padded = -(-vocab_size // 128) * 128
    log(f"on a small computer, add --recipe=smoke --model.vocab_size={padded}")
    return f"python -m {__package__}.pretrain {shlex.join(arguments)}"


def stages(config: Config) -> list:
    """Returns the stages of the pipeline, in order. Report: 2.1."""
    filters = config.filters
    stages: list = [config.read]
    stages += [RepositoryStage()] if config.repositories else []
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
        made = {
            "test_sets": [
                str(pathlib.Path(filters.test_sets).resolve()),
                *map(dataclasses.astuple, source_files.listing(filters.test_sets)),
            ]
        }
        if filters.test_tasks:  # indexes of earlier versions have none
            made["test_tasks"] = list(filters.test_tasks)
        record_provenance(path.with_suffix(".json"), made, path)
        if not path.exists():
            items = (
                read_tasks(filters.test_tasks, [filters.test_sets], "--filters.test_tasks")
                if filters.test_tasks
                else read_test_sets(filters.test_sets)
            )
            Index.build(items).save(path)
        stages.append(DecontaminationStage(str(path)))
    return stages


def reviewable_rows(result: pipeline.Result):
    """Yields the rows that any stage rejected, then the rows that the last stage kept."""
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
    """Validates the settings.

    Raises:
      ConfigError: a setting is missing, invalid or in conflict with another.
      TokenizerError: the --tokenizer file cannot be read.
    """
    if not config.sources or not config.output:
        raise ConfigError(
            "no sources or no output folder is set.",
            "--sources, --output",
            "set both flags; --help has examples.",
        )
    if config.tokenizer and config.vocabulary.base:
        raise ConfigError(
            "--tokenizer sets a full vocabulary, but --vocabulary.base trains a new one.",
            "--tokenizer, --vocabulary.base",
            "set only one of them.",
        )
    if config.filters.perplexity and not config.tokenizer:
        raise ConfigError(
            "perplexity models need an existing vocabulary.",
            "--filters.perplexity",
            "set --tokenizer to the vocabulary that they were trained with.",
        )
    if config.filters.checkpoint and config.filters.checkpoint_max_bpb is None:
        raise ConfigError(
            "--filters.checkpoint requires an upper limit on bits per byte.",
            "--filters.checkpoint_max_bpb",
            "set a number; inf scores every text and rejects none.",
        )
    if config.filters.test_tasks and not config.filters.test_sets:
        raise ConfigError(
            "tasks are set without the folder of their files.",
            "--filters.test_tasks",
            "set --filters.test_sets to the folder.",
        )
    needed = {
        "pyarrow": True,
        "matplotlib": True,  # draws the mixture
        "py3langid": config.identify_language,
        "tokenizers": config.tokenizer is None,
        "daft": config.workers > 0 or config.ray is not None,
    }
    missing = [name for name, is_used in needed.items() if is_used and not find_spec(name)]
    if missing:
        raise ConfigError(
            f"the pipeline needs packages that are not installed: {', '.join(missing)}.",
            "prepare_data",
            "pip install 'qwen_jax[data]'.",
        )
    vocabulary.check(config.vocabulary)
    if config.tokenizer:
        load_tokenizer(config.tokenizer)  # fail now, not hours later


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
