"""Trains a text filter from labeled texts, or from clean text only. Report: 2.1.

    python -m experiments.train_filter --labeled=labels.jsonl --positive=good --output=good.npz
    python -m experiments.train_filter --labeled=a.jsonl,b.jsonl --positive=offensive \\
        --train.precision=0.95 --output=offensive.npz
    python -m experiments.train_filter --clean=news.jsonl,books --tokenizer=qwen.tiktoken \\
        --output=english.npz

A row is {"text": ..., "label": ...}. The filter learns to mark texts with the label of --positive.
A share of the texts, chosen by hash, is held out: half of it sets the threshold (the lowest one
with --train.precision), the other half gives the printed precision and recall. The model is
described in corpus/filters/linear.py.

--clean names files or folders of clean text of one language, for an n-gram model. Pass the filter
to experiments.prepare_data as --filters.perplexity=en=english.npz with the same --tokenizer: text
that is less or more predictable than nearly all held-out clean text is rejected.
"""

import collections
import dataclasses
import hashlib
import pathlib

import numpy as np

from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.corpus.filters.linear import FilterSettings, LinearFilter, train
from qwen_jax.corpus.filters.perplexity import NgramFilter, PerplexityRules
from qwen_jax.corpus.sources.read import documents
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.ranges import Checked, Range
from qwen_jax.tokenizer.load import load_tokenizer
from qwen_jax.utils.best_effort import keep_going
from qwen_jax.utils.jsonl import read_rows


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """Settings of one filter."""

    labeled: tuple[str, ...] = option(
        (), ".json and .jsonl files of labeled texts", alias="labelled"
    )
    positive: str = option("good", "label of the texts that the filter marks")
    output: str = option("runs/filter.npz", ".npz file for the filter")
    held_out: float = option(
        0.3,
        "fraction of texts to hold out: half sets the threshold, half is measured",
        Range(above=0, below=1),
    )
    train: FilterSettings = FilterSettings()
    clean: tuple[str, ...] = option(
        (), "files or folders of clean text, to train a perplexity filter instead"
    )
    tokenizer: str | None = option(None, "folder or file of a tokenizer, required by --clean")
    perplexity: PerplexityRules = PerplexityRules()


RECIPE = Config()
SMOKE = dataclasses.replace(
    RECIPE,
    output="runs/filter_smoke.npz",
    train=dataclasses.replace(RECIPE.train, epochs=2, bits=16),
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Counts for the precision and recall of a filter."""

    texts: int
    positive: int
    marked: int
    correct: int  # texts that are marked and positive

    @property
    def precision(self) -> float:
        return self.correct / self.marked if self.marked else float("nan")

    @property
    def recall(self) -> float:
        return self.correct / self.positive if self.positive else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.texts:,} texts, {self.positive:,} positive, {self.marked:,} marked: "
            f"precision {self.precision:.3f}, recall {self.recall:.3f}"
        )


@keep_going()
def main(config: Config) -> None:
    """Trains a filter, measures it on held-out texts and saves it."""
    if bool(config.labeled) == bool(config.clean):
        raise ConfigError(
            "both or neither of --labeled and --clean are set.",
            "--labeled, --clean",
            "set exactly one of them.",
        )
    if config.clean:
        train_perplexity_filter(config)
        return
    rows = read(config.labeled, config.positive)
    counts = collections.Counter(label for _, label in rows)
    print(f"{len(rows):,} texts, {counts[True]:,} of them {config.positive}", flush=True)
    parts = split(rows, config.held_out)
    print(", ".join(f"{len(part):,} {name}" for name, part in parts.items()), flush=True)
    texts, labels = zip(*parts["training"], strict=True)
    held_texts, held_labels = zip(*parts["threshold"], strict=True)
    model = train(
        texts,
        labels,
        label=config.positive,
        held_out=(held_texts, held_labels),
        settings=config.train,
    )
    path = pathlib.Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    print(
        f"threshold {model.threshold:.3f}; on held-out texts: "
        f"{measure(model, parts['measured'])}\n{path}"
    )


def train_perplexity_filter(config: Config) -> None:
    """Fits an n-gram filter, sets its limits on held-out texts and measures it on other texts."""
    if not config.tokenizer:
        raise ConfigError("--clean needs a tokenizer.", "--tokenizer", "pass its file or folder.")
    texts = dict.fromkeys(document.text for path in config.clean for document in documents(path))
    parts = {
        name: [text for text, _ in rows]
        for name, rows in split([(text, True) for text in texts], config.held_out).items()
    }
    print(", ".join(f"{len(part):,} texts for {name}" for name, part in parts.items()), flush=True)
    tokenizer = load_tokenizer(config.tokenizer)
    model = NgramFilter.fit(
        parts["training"], parts["threshold"], tokenizer, rules=config.perplexity
    )
    path = pathlib.Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    scores = model.score(parts["measured"], tokenizer)
    easiest, strangest = model.limits
    print(
        f"keeps {easiest:.3f} to {strangest:.3f} bits per byte; of held-out texts, "
        f"{np.mean(scores < easiest):.1%} are below and {np.mean(scores > strangest):.1%} above; "
        f"the median has {np.nanmedian(scores):.3f}\n{path}"
    )


def read(paths: tuple[str, ...], positive: str) -> list[tuple[str, bool]]:
    """Returns (text, whether it is positive) for each distinct text.

    Raises:
      DataError: a row has no text or label, a text has two labels, or no row has the label.
    """
    found: dict[str, bool] = {}
    labels = set()
    for path in paths:
        for where, row in read_rows(path):
            text, label = row.get("text"), row.get("label")
            if not isinstance(text, str) or not isinstance(label, str):
                raise DataError(
                    "a row has no text or no label.", where, 'use {"text": ..., "label": ...}.'
                )
            labels.add(label)
            if found.setdefault(text, label == positive) != (label == positive):
                raise DataError(f"{text[:60]!r} has two labels.", where, "delete one of the rows.")
    if positive not in labels:
        raise DataError(
            f"no row is labeled {positive!r}.",
            ", ".join(paths),
            f"set --positive to one of: {', '.join(sorted(labels))}.",
        )
    return list(found.items())


def split(rows: list[tuple[str, bool]], held_out: float) -> dict[str, list[tuple[str, bool]]]:
    """Splits by the hash of each text, so that a text's part does not depend on other texts.

    Raises:
      DataError: a part would be empty.
    """
    parts: dict[str, list[tuple[str, bool]]] = {"training": [], "threshold": [], "measured": []}
    for text, label in rows:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        at = int.from_bytes(digest, "little") / 2**64
        name = "measured" if at < held_out / 2 else "threshold" if at < held_out else "training"
        parts[name].append((text, label))
    if not all(parts.values()):
        raise DataError(
            f"{len(rows)} texts are too few to hold out a fraction of {held_out}.",
            "--labeled, --clean",
            "pass more texts.",
        )
    return parts


def measure(model: LinearFilter, rows: list[tuple[str, bool]]) -> Scores:
    """Returns the counts for precision and recall."""
    labels = np.asarray([label for _, label in rows], bool)
    marked = np.asarray([model.score(text) >= model.threshold for text, _ in rows], bool)
    return Scores(
        texts=len(rows),
        positive=int(labels.sum()),
        marked=int(marked.sum()),
        correct=int((labels & marked).sum()),
    )


if __name__ == "__main__":
    flags.run(main, __doc__, {"filter": RECIPE, "smoke": SMOKE})
