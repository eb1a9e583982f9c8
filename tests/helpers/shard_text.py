"""Documents of a few letters, a byte tokenizer, and a reader of the tokens of shards."""

import random

import numpy as np

from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.tokenizer.settings import Settings


class Bytes:
    """A tokenizer with one token per byte, and 256 as the end of a document."""

    vocab_size, end_of_text, fingerprint = 257, 256, "bytes"
    settings = Settings()

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def save(self, path):
        path.write_text("bytes")


def make_documents(number=200):
    rng = random.Random(0)
    return [
        Document(f"d{i}", "".join(rng.choices("abcé ", k=rng.randrange(1, 80))))
        for i in range(number)
    ]


def read(folder):
    opened = shards.open_shards(folder)
    return np.concatenate([np.fromfile(file, opened.dtype) for file in opened.files])
