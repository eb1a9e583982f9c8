"""Synthetic documents made of real sentences; some are near-duplicates of earlier ones."""

import pathlib
import random
import re

from qwen_jax.errors import ConfigError
from qwen_jax.utils.jsonl import read_rows


def sentences(shared: str) -> list[str]:
    """Returns the English sentences in the shared texts."""
    folder = pathlib.Path(shared) / "data/text"
    if not folder.exists():
        raise ConfigError(
            "the shared texts are missing.",
            str(folder),
            "set --shared to the folder of public data.",
        )
    text = (
        (folder / "wikitext2_valid.txt").read_text("utf-8")
        + "\n"
        + "\n".join(row["text"] for _, row in read_rows(folder / "c4_demo.jsonl"))
    )
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text)]
    return [part for part in found if 30 < len(part) < 400]


def documents(
    shared: str, number: int, *, near: float = 0.1, characters: int = 1400, seed: int = 0
) -> list[str]:
    """Returns documents of random sentences.

    Args:
      near: fraction of documents that repeat an earlier document with two words changed.
      characters: minimum document length in characters.
    """
    rng, pool, made = random.Random(seed), sentences(shared), []
    for i in range(number):
        if made and rng.random() < near:
            words = rng.choice(made).split(" ")
            for index in rng.sample(range(len(words)), 2):
                words[index] = f"changed{rng.randrange(1000)}"
            made.append(" ".join(words))
            continue
        parts, size = [], 0
        while size < characters:
            parts.append(rng.choice(pool))
            size += len(parts[-1])
        made.append(f"{' '.join(parts)} {i}")
    return made
