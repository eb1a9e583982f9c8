"""Text to measure on: new documents of real sentences, some of them nearly said before."""

import pathlib
import random
import re

from qwen_jax.errors import ConfigError
from qwen_jax.utils.jsonl import read_rows


def sentences(shared: str) -> list[str]:
    """English sentences of the shared texts."""
    folder = pathlib.Path(shared) / "data/text"
    if not folder.exists():
        raise ConfigError(
            "there is no text to measure on.", str(folder), "name the --shared folder."
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
    """Documents of random sentences; the share `near` are earlier ones with two words changed."""
    draw, said, made = random.Random(seed), sentences(shared), []
    for i in range(number):
        if made and draw.random() < near:
            words = draw.choice(made).split(" ")
            for place in draw.sample(range(len(words)), 2):
                words[place] = f"changed{draw.randrange(1000)}"
            made.append(" ".join(words))
            continue
        parts, size = [], 0
        while size < characters:
            parts.append(draw.choice(said))
            size += len(parts[-1])
        made.append(f"{' '.join(parts)} {i}")
    return made
