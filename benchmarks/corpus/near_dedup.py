"""Recall and precision of near_dedup on planted pairs of known Jaccard similarity.

The pairs of a level have about that Jaccard similarity of shingles, computed exactly. The
near_dedup stage runs over all pairs and over unrelated documents.

    python -m benchmarks.corpus.near_dedup --output=benchmarks/results/near_dedup.md
"""

import dataclasses
import os
import pathlib
import random
import tempfile

import numpy as np
import pyarrow.parquet as pq

from benchmarks.corpus import corpus, packages
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus import pipeline
from qwen_jax.corpus.dedup.minhash import words
from qwen_jax.corpus.dedup.near import NearDedup, probability
from qwen_jax.corpus.sources.read import Read
from qwen_jax.utils.jsonl import write_rows

LEVELS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Config:
    """The planted pairs, and the settings of the stage."""

    shared: str = option(os.environ.get("QWEN_JAX_SHARED", "../shared"), "folder of public data")
    pairs: int = option(200, "document pairs per level of similarity")
    minhash: NearDedup = NearDedup()
    output: str = option("", "Markdown file for the results; the plot is written next to it")


def shingles(parts: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(parts[i : i + size]) for i in range(max(1, len(parts) - size + 1))}


def near_duplicate(rng: random.Random, text: str, level: float, size: int) -> tuple[str, float]:
    """Changes words one by one until the exact similarity is close to the level."""
    parts = words(text).decode().split()
    own = shingles(parts, size)
    changed = list(parts)
    for index in rng.sample(range(len(parts)), len(parts)):
        before = changed[index]
        changed[index] = f"other{rng.randrange(10**6)}"
        other = shingles(changed, size)
        similarity = len(own & other) / len(own | other)
        if similarity < level - 0.02:  # too low: try another word
            changed[index] = before
        elif similarity <= level + 0.01:
            return " ".join(changed), similarity
    raise AssertionError("no change gives this similarity")


def main(config: Config) -> None:
    """Prints the table, and writes it and its plot to --output."""
    rng = random.Random(0)
    number = config.pairs * len(LEVELS)
    # Documents are long, so that changing one word changes the similarity only slightly.
    originals = corpus.documents(config.shared, 2 * number, near=0.0, characters=1800)
    planted, exact = [], []
    for i, text in enumerate(originals[:number]):
        other, similarity = near_duplicate(
            rng, text, LEVELS[i % len(LEVELS)], config.minhash.shingle
        )
        planted.append(other)
        exact.append(similarity)
    kept_of = duplicates(originals + planted, config.minhash)
    gone = np.zeros(len(originals) + len(planted), bool)
    gone[list(kept_of)] = True
    found = gone[len(originals) :]
    correct = np.array([kept_of.get(len(originals) + i) == i for i in range(number)])
    wrong = int(gone[: len(originals)].sum()) + int((found & ~correct).sum())
    curve = dict(bands=config.minhash.bands, rows=config.minhash.rows)
    lines = [
        packages.head(("daft", "numpy")),
        f"{len(originals):,} documents of real sentences, {number:,} of them with a planted "
        f"partner; {config.minhash.bands} bands of {config.minhash.rows}, shingles of "
        f"{config.minhash.shingle} words. Documents rejected without a partner, or for a wrong "
        f"one: {wrong}. Recall is the fraction found. Precision is the fraction of pairs from 0.7 "
        "up among the pairs found from this level up. All levels have equally many pairs (a real "
        "corpus has its own mix).",
        "",
        "| Jaccard (exact, mean) | recall | expected by the S-curve | precision from here up |",
        "|---|---|---|---|",
    ]
    exact_of = np.array(exact)
    level_of = np.array([LEVELS[i % len(LEVELS)] for i in range(number)])
    good, all_found = 0, 0
    rows = []
    for level in reversed(LEVELS):
        chosen = level_of == level
        hits = int(found[chosen].sum())
        all_found += hits
        good += hits if level >= 0.7 else 0
        rows.append(
            f"| {exact_of[chosen].mean():.3f} | {hits / chosen.sum():.3f} | "
            f"{probability(exact_of[chosen], **curve).mean():.3f} | "
            f"{good / max(1, all_found):.3f} |"
        )
    lines += rows
    print("\n".join(lines))
    if config.output:
        path = pathlib.Path(config.output)
        path.write_text(
            "# Near duplicates, planted\n\n"
            + "\n".join(lines)
            + f"\n\n![S-curve]({path.stem}.png)\n",
            "utf-8",
        )
        plot(path.with_suffix(".png"), curve, level_of, exact_of, found)


def duplicates(texts: list[str], minhash: NearDedup) -> dict[int, int]:
    """Returns {index of a rejected text: index of the text kept instead}."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(
            pathlib.Path(folder) / "a.jsonl",
            [{"text": text, "n": i} for i, text in enumerate(texts)],
        )
        result = pipeline.run([f"{folder}/a.jsonl"], [Read(), minhash], f"{folder}/out", workers=0)
        rejected = [
            row
            for i in range(result.partitions)
            for row in pq.read_table(result.folder.rejected(i)).to_pylist()
        ]
    return {
        int(row["metadata"].split(":")[1].rstrip("}")): int(row["rejected_value"].partition("#")[2])
        for row in rejected
    }


def plot(path: pathlib.Path, curve: dict, level_of, exact_of, found) -> None:
    """Plots the S-curve, and the fraction found at each level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    x = np.linspace(0.3, 1, 200)
    axes.plot(
        x,
        probability(x, **curve),
        color="#2f6fb0",
        label=f"1 - (1 - s^{curve['rows']})^{curve['bands']}",
    )
    for level in LEVELS:
        chosen = level_of == level
        share = found[chosen].mean()
        error = 1.96 * np.sqrt(share * (1 - share) / chosen.sum())
        axes.errorbar(
            exact_of[chosen].mean(),
            share,
            error,
            fmt="o",
            color="#c4572f",
            capsize=3,
            label="found, with 95 % intervals" if level == LEVELS[0] else None,
        )
    axes.set_xlabel("Jaccard similarity of shingles, exact")
    axes.set_ylabel("fraction rejected")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
