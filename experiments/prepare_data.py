"""From raw text, code and web pages to token shards: one plan. Report: 2.1, 2.2, 2.4.

Reads sources, takes their documents through the stages of OUTPUT/plan.json (every one leaves its rows,
what it rejected and why, and counts), and writes OUTPUT/shards/SOURCE/train and eval, which
experiments.pretrain reads. Kill it anywhere and run the same command again: it goes on behind what is
finished, and ends with the same bytes, on one worker or many, on this computer or on Ray.

A folder of your own:  python -m experiments.prepare_data --sources=FOLDER --output=data/mine
Several, by kind:      ... --sources=web=web:crawl,code=code:repositories,python:docs
                       kinds: web, code, documentation, text, instruction; else by each file's suffix
Common Crawl:          ... --sources=web:s3://commoncrawl/crawl-data/.../warc --ray=ADDRESS
Released vocabulary:   ... --tokenizer=qwen.tiktoken
cl100k_base, grown:    ... --base=cl100k_base.tiktoken --num_new=50000
Then:                  python -m experiments.pretrain --data.sources=data/mine/shards/web/train ...
"""

import dataclasses
import os
import pathlib
from typing import Literal

from tqdm import tqdm

from experiments import flags
from qwen_jax.data import engine, pipeline, shards
from qwen_jax.data.exact_dedup import ExactDedup
from qwen_jax.data.language import Language
from qwen_jax.data.near_dedup import NearDedup
from qwen_jax.data.read import Read
from qwen_jax.data.tokenise import texts, tokenise
from qwen_jax.errors import ConfigError
from qwen_jax.tokenizer import extend
from qwen_jax.tokenizer.bpe import Tokenizer, read_ranks


@dataclasses.dataclass(frozen=True)
class Config:
    """One corpus."""

    sources: tuple[str, ...] = ()  # [NAME=][KIND:]PATH; of equal documents those of earlier ones stay
    output: str = ""  # a folder; an interrupted run goes on in it
    read: Read = Read()
    language: Language = Language()
    exact_dedup: tuple[Literal["url", "document", "paragraph"], ...] = ("url", "document")
    near_dedup: bool = True  # and not exact duplicates alone
    minhash: NearDedup = NearDedup()
    tokenizer: str | None = None  # a .tiktoken file; None: learn a vocabulary from the text
    vocab_size: int = 32768  # of a learnt vocabulary
    base: str | None = None  # a .tiktoken file to grow, such as cl100k_base
    num_new: int = 50000  # tokens to grow it by
    vocabulary_mb: int = 500  # of the text that a vocabulary is learnt from
    eval_fraction: float = 0.01  # of the documents, held out
    shard_tokens: float = 1e8  # tokens in one file, about
    seed: int = 0  # of the order of documents and of what is held out
    partition_mb: float = 64.0  # of source files that one task reads
    workers: int = os.cpu_count() or 1  # processes, or actors on Ray; 0: none beside this one
    ray: str | None = None  # address of a cluster; local: one on this computer


RECIPE = Config()
SMOKE = dataclasses.replace(
    RECIPE, sources=("code:" + str(pathlib.Path(engine.__file__).parent),), vocab_size=600,
    output="runs/prepare_data_smoke", workers=0)


def main(config: Config) -> None:
    """The plan, a vocabulary unless there is one, the shards."""
    check(config)
    engine.start(config.ray)
    result = pipeline.run(config.sources, plan(config), config.output, workers=config.workers,
                          partition_mb=config.partition_mb, say=say)
    for line in pipeline.throughput(result.seconds):
        say(line)
    output = pathlib.Path(config.output)
    tokenizer = config.tokenizer or vocabulary(config, result, output / "tokenizer.tiktoken")
    tokenise(result, str(output / "shards"), tokenizer, workers=config.workers, say=say,
             split=shards.Split(config.eval_fraction, config.seed),
             shard_tokens=config.shard_tokens)
    for folder in sorted((output / "shards").glob("*/*/")):
        made = shards.open_shards(folder)
        say(f"{folder}: {made.documents:,} documents, {made.tokens:,} tokens, "
            f"{made.bytes_per_token:.2f} bytes per token")


def plan(config: Config) -> list:
    """The stages in their order. Report: 2.1."""
    return [config.read, config.language, *(ExactDedup(by) for by in config.exact_dedup),
            *([config.minhash] if config.near_dedup else [])]


def say(line: str) -> None:
    print(line, flush=True)


def check(config: Config) -> None:
    """Raises ConfigError for settings that cannot be right together."""
    if not config.sources or not config.output:
        raise ConfigError("nothing to read, or nowhere to write.", "--sources, --output",
                          "name both; --help shows how.")
    if config.tokenizer and config.base:
        raise ConfigError("a finished vocabulary is not grown.", "--tokenizer, --base",
                          "give one of the two.")


def vocabulary(config: Config, result: pipeline.Result, path: pathlib.Path) -> str:
    """A vocabulary of the text that is left."""
    if not path.exists():
        learnt = tqdm(texts(result, config.vocabulary_mb), unit=" documents",
                      desc="learning a vocabulary")
        ranks = (extend.grow(read_ranks(config.base), learnt, num_new=config.num_new)
                 if config.base else extend.train(learnt, vocab_size=config.vocab_size))
        Tokenizer(ranks).save(path)
    return str(path)


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": RECIPE, "smoke": SMOKE})
