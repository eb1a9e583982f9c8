"""Loader throughput in tokens/s: 32 sequences of 2048 tokens, one source, both packings.

python -m benchmarks.corpus.data
"""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any, cast

import numpy as np

from qwen_jax.cli import flags
from qwen_jax.config import DataConfig, option
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.data.loader import Loader
from qwen_jax.tokenizer.settings import Settings


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the data, and duration of the measurement."""

    tokens_millions: int = option(60, "size of the source, in millions of tokens")
    context_length: int = option(2048, "tokens per sequence")
    batch_size: int = option(32, "sequences per batch")
    seconds: float = option(5.0, "duration of the measurement of each packing, in seconds")


class RandomTokens:
    """A stand-in tokenizer with random IDs, which do not affect the loader's speed."""

    vocab_size, end_of_text, fingerprint = 151_936, 151_643, "random"
    settings = Settings()

    def encode_batch(self, texts):
        rng = np.random.default_rng(len(texts[0]))
        return [rng.integers(0, 151_000, 20_000).astype(np.uint32) for _ in texts]

    def save(self, path):
        path.write_text("none")


def main(config: Config) -> None:
    """Prints the speed with each packing."""
    with tempfile.TemporaryDirectory() as folder:
        documents = (Document(str(i), f"{i}") for i in range(config.tokens_millions * 50))
        shards.write(documents, pathlib.Path(folder) / "random", cast(Any, RandomTokens()))
        for packing in ("concat", "documents"):
            loader = Loader(
                DataConfig(sources=(f"{folder}/random/train",), packing=packing),
                context_length=config.context_length,
                batch_size=config.batch_size,
                end_of_text=RandomTokens.end_of_text,
                seed=0,
            )
            with loader.iterate(0) as batches:
                next(batches)
                started, count = time.perf_counter(), 0
                while time.perf_counter() - started < config.seconds:
                    next(batches)
                    count += 1
                rate = (
                    count
                    * config.batch_size
                    * config.context_length
                    / (time.perf_counter() - started)
                )
            print(f"{packing:10} {rate / 1e6:6.1f} M tokens/s", flush=True)


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
