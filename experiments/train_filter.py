"""Trains a filter of texts: from labeled examples, or from clean text alone. Report: 2.1.

    python -m experiments.train_filter --labeled=labels.jsonl --positive=good --output=good.npz
    python -m experiments.train_filter --labeled=a.jsonl,b.jsonl --positive=offensive \\
        --train.precision=0.95 --output=offensive.npz
    python -m experiments.train_filter --clean=news.jsonl,books --tokenizer=qwen.tiktoken \\
        --output=english.npz

A row is {"text": ..., "label": ...}; rows with the label named by --positive are what the filter
marks, all others what it does not. A share of the texts, chosen by hash, is held out: a half of it
sets the threshold (the lowest one with --train.precision), the printed numbers are measured on the
other. corpus/filters/linear.py says what the model is.

--clean names text of one language (files or folders) that is as it should be. An n-gram model
counts it; what it finds stranger, or easier, than nearly all held-out clean text will be rejected,
by experiments.prepare_data with --filters.perplexity=en=english.npz and the same --tokenizer.
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
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.jsonl import read_rows


@dataclasses.dataclass(frozen=True)
class Config:
    """One filter."""

    labeled: tuple[str, ...] = option((), ".json and .jsonl files", alias="labelled")
    positive: str = option("good", "the label of what is marked")
    output: str = option("runs/filter.npz", "the model")
    held_out: float = option(0.3, "of the texts; half for the threshold, half for the numbers")
    train: FilterSettings = FilterSettings()
    clean: tuple[str, ...] = option((), "in the place of labeled texts: for perplexity")
    tokenizer: str | None = option(None, "a .tiktoken file that perplexity is counted in")
    perplexity: PerplexityRules = PerplexityRules()


RECIPE = Config()
SMOKE = dataclasses.replace(
    RECIPE,
    output="runs/filter_smoke.npz",
    train=dataclasses.replace(RECIPE.train, epochs=2, bits=16),
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of marked texts against labels."""

    texts: int
    positive: int
    marked: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.marked if self.marked else float("nan")

    @property
    def recall(self) -> float:
        return self.right / self.positive if self.positive else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.texts:,} texts, {self.positive:,} positive, {self.marked:,} marked: "
            f"precision {self.precision:.3f}, recall {self.recall:.3f}"
        )


def main(config: Config) -> None:
    """Reads, splits, trains, measures, saves."""
    if bool(config.labeled) == bool(config.clean):
        raise ConfigError(
            "neither labeled nor clean texts, or both.",
            "--labeled, --clean",
            "name files of one of them; --help shows how.",
        )
    if not 0 < config.held_out < 1:
        raise ConfigError(f"{config.held_out} held out.", "--held_out", "use a part, 0 to 1.")
    if config.clean:
        of_clean_text(config)
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
        f"threshold {model.threshold:.3f}; on texts that neither training nor threshold has "
        f"seen: {measure(model, parts['measured'])}\n{path}"
    )


def of_clean_text(config: Config) -> None:
    """Counts n-grams, reads the limits off other texts, and says what they do to a third lot."""
    if not config.tokenizer:
        raise ConfigError("no vocabulary to count in.", "--tokenizer", "name a .tiktoken file.")
    texts = dict.fromkeys(document.text for path in config.clean for document in documents(path))
    parts = {
        name: [text for text, _ in rows]
        for name, rows in split([(text, True) for text in texts], config.held_out).items()
    }
    print(", ".join(f"{len(part):,} texts for {name}" for name, part in parts.items()), flush=True)
    tokenizer = Tokenizer.from_file(config.tokenizer)
    model = NgramFilter.fit(
        parts["training"], parts["threshold"], tokenizer, rules=config.perplexity
    )
    path = pathlib.Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    scores = model.score(parts["measured"], tokenizer)
    easiest, strangest = model.limits
    print(
        f"keeps {easiest:.3f} to {strangest:.3f} bits per byte; of texts that neither counts nor "
        f"limits have seen, {np.mean(scores < easiest):.1%} are too easy and "
        f"{np.mean(scores > strangest):.1%} too strange, the median has "
        f"{np.nanmedian(scores):.3f}\n{path}"
    )


def read(paths: tuple[str, ...], positive: str) -> list[tuple[str, bool]]:
    """(text, whether it is positive), each text once.

    Raises:
      DataError: a row without text or label, a text with two labels, or no row of that label.
    """
    found: dict[str, bool] = {}
    labels = set()
    for path in paths:
        for place, row in read_rows(path):
            text, label = row.get("text"), row.get("label")
            if not isinstance(text, str) or not isinstance(label, str):
                raise DataError("no text with a label.", place, '{"text": ..., "label": ...}')
            labels.add(label)
            if found.setdefault(text, label == positive) != (label == positive):
                raise DataError(f"two labels for {text[:60]!r}.", place, "delete one of the rows.")
    if positive not in labels:
        raise DataError(
            f"no row is labeled {positive!r}.",
            ", ".join(paths),
            f"--positive is one of: {', '.join(sorted(labels))}.",
        )
    return list(found.items())


def split(rows: list[tuple[str, bool]], held_out: float) -> dict[str, list[tuple[str, bool]]]:
    """By the hash of the text: the same text is on the same side whatever else there is.

    Raises:
      DataError: a part would be empty.
    """
    parts: dict[str, list[tuple[str, bool]]] = {"training": [], "threshold": [], "measured": []}
    for text, label in rows:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        draw = int.from_bytes(digest, "little") / 2**64
        name = "measured" if draw < held_out / 2 else "threshold" if draw < held_out else "training"
        parts[name].append((text, label))
    if not all(parts.values()):
        raise DataError(
            f"{len(rows)} texts are too few to hold {held_out} out.",
            "--labeled",
            "label more of them.",
        )
    return parts


def measure(model: LinearFilter, rows: list[tuple[str, bool]]) -> Scores:
    """Precision and recall of what the filter marks."""
    labels = np.asarray([label for _, label in rows], bool)
    marked = np.asarray([model.score(text) >= model.threshold for text, _ in rows], bool)
    return Scores(
        texts=len(rows),
        positive=int(labels.sum()),
        marked=int(marked.sum()),
        right=int((labels & marked).sum()),
    )


if __name__ == "__main__":
    flags.run(main, __doc__, {"filter": RECIPE, "smoke": SMOKE})
