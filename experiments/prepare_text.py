"""Your own text -> vocabulary and token shards. Report: 2.1, 2.2, 2.4.

Reads text files, HTML, JSONL and Parquet (gzipped or not, alone or in folders), encodes them, and
writes OUTPUT/train, OUTPUT/eval and OUTPUT/tokenizer.tiktoken, once and whole.

With a vocabulary of its own:   python -m experiments.prepare_text --input=FOLDER --output=data/mine
With the released vocabulary:   ... --tokenizer=qwen.tiktoken
With cl100k_base, grown:        ... --base=cl100k_base.tiktoken --num_new=50000
Then:                           python -m experiments.pretrain --help
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Literal

from tqdm import tqdm

from experiments import flags
from qwen_jax.data import extract, shards, sources
from qwen_jax.data.sources import Document
from qwen_jax.errors import ConfigError
from qwen_jax.tokenizer import extend
from qwen_jax.tokenizer.bpe import Tokenizer, read_ranks


@dataclasses.dataclass(frozen=True)
class Config:
    """One set of shards."""

    input: tuple[str, ...] = ()  # files and folders
    output: str = ""  # a new folder
    text_field: str = "text"  # the column of JSONL and Parquet that holds the text
    html: Literal["article", "page"] = "article"  # the main text of web pages, or all of a page
    tokenizer: str | None = None  # a .tiktoken file; None: learn a vocabulary from the text
    vocab_size: int = 32768  # of a learnt vocabulary
    base: str | None = None  # a .tiktoken file to grow, such as cl100k_base
    num_new: int = 50000  # tokens to grow it by
    vocabulary_mb: int = 500  # of the text, from its beginning, that a vocabulary is learnt from
    eval_fraction: float = 0.01  # of the documents, held out
    num_shards: int = 1  # files of the training part: some 100M tokens each
    seed: int = 0  # of the order of documents


RECIPE = Config()


def main(config: Config) -> None:
    """Two passes over the text: one for the vocabulary, unless there is one, one for the shards."""
    if not config.input or not config.output:
        raise ConfigError("nothing to read, or nowhere to write.", "--input, --output",
                          "name both; --help shows how.")
    if config.tokenizer and config.base:
        raise ConfigError("a finished vocabulary is not grown.", "--tokenizer, --base",
                          "give one of the two.")
    if pathlib.Path(config.output).exists():
        raise ConfigError("this folder exists already.", f"--output={config.output}",
                          "shards are written once: choose another name, or delete it first.")
    total = sum(file.stat().st_size for path in config.input for file in sources.files(path))
    print(f"{total / 1e6:,.1f} MB in {len(config.input)} sources", flush=True)
    if config.tokenizer:
        tokenizer = Tokenizer.from_file(config.tokenizer)
    else:
        tokenizer = learn(config)
    with tqdm(unit=" tokens", unit_scale=True, desc="encoding") as bar:
        shards.write(documents(config), config.output, tokenizer, seed=config.seed,
                     eval_fraction=config.eval_fraction, num_shards=config.num_shards,
                     progress=lambda done, tokens: bar.update(tokens - bar.n))
    for side in ("train", "eval"):
        if (pathlib.Path(config.output) / side).exists():
            made = shards.open_shards(pathlib.Path(config.output) / side)
            print(f"{made.folder}: {made.documents:,} documents, {made.tokens:,} tokens, "
                  f"{made.bytes_per_token:.2f} bytes per token")


def documents(config: Config) -> Iterator[Document]:
    """All documents of all inputs."""
    for path in config.input:
        yield from sources.documents(path, text_field=config.text_field,
                                     html_to_text=getattr(extract, config.html))


def learn(config: Config) -> Tokenizer:
    """A vocabulary of the first `vocabulary_mb` of the text."""
    def texts():
        characters = 0
        for document in tqdm(documents(config), unit=" documents", desc="learning a vocabulary"):
            yield document.text
            characters += len(document.text)
            if characters > config.vocabulary_mb * 1e6:
                return

    if config.base:
        return Tokenizer(extend.grow(read_ranks(config.base), texts(), num_new=config.num_new))
    return Tokenizer(extend.train(texts(), vocab_size=config.vocab_size))


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": RECIPE})
