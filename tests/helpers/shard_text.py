"""Documents of a few letters, a tokenizer of bytes, and the tokens of shards read back."""

import random

import numpy as np

from qwen_jax.data import shards
from qwen_jax.data.document import Document


class Bytes:
    """One token per byte, and 256 to end a document."""

    vocab_size, end_of_text, fingerprint = 257, 256, "bytes"

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def save(self, path):
        path.write_text("bytes")


def make_documents(number=200):
    draw = random.Random(0)
    return [
        Document(f"d{i}", "".join(draw.choices("abcé ", k=draw.randrange(1, 80))))
        for i in range(number)
    ]


def read(folder):
    opened = shards.open_shards(folder)
    return np.concatenate([np.fromfile(file, opened.dtype) for file in opened.files])
