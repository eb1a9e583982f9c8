"""A linear classifier over hashed n-grams, for text quality or offensive text.

Report: 2.1 (models).

    p(positive | text) = sigmoid(b + sum over n-grams g of the text: w[hash(g)] f(g))

The n-grams are words, pairs of words, character trigrams within words, and runs of one to three
Chinese characters. f(g) is 1 / sqrt(number of distinct n-grams). AdaGrad minimizes the logistic
loss. The threshold is the lowest one that reaches the requested precision on held-out labels.
Training and scoring need only numpy.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from qwen_jax.config import option
from qwen_jax.corpus import stage
from qwen_jax.errors import ConfigError, DataError
from qwen_jax.ranges import ABOVE_ZERO, FRACTION, ONE_OR_MORE, SEED, ZERO_OR_MORE, Checked, Range

_WORD = re.compile(r"[^\W_\u3007\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]|\n")
_CHINESE = ((0x3007, 0x3007), (0x3040, 0x30FF), (0x3400, 0x9FFF))  # code points, including kana
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class FilterSettings(Checked, where="--train.{}"):
    """Training settings; saved with the weights."""

    bits: int = option(20, "log2 of the number of weights (4 bytes each)", Range(1, 30))
    characters: int = option(20_000, "characters read from the start of each text", ONE_OR_MORE)
    epochs: int = option(10, "passes over the training texts", ONE_OR_MORE)
    learning_rate: float = option(0.5, "learning rate of AdaGrad", ABOVE_ZERO)
    l2: float = option(1e-5, "L2 penalty at every update of a weight", ZERO_OR_MORE)
    seed: int = option(0, "random seed of the order of texts", SEED)
    precision: float = option(
        0.9, "precision on held-out texts, which determines the threshold", FRACTION
    )


RECIPE = FilterSettings()


def features(text: str, settings: FilterSettings = RECIPE) -> np.ndarray:
    """Returns the distinct hashed n-grams of a text, sorted; int64 [num_features]."""
    text = text[: settings.characters].lower()
    words = [_of_word(word) for word in _WORD.findall(text)]
    numbers = np.fromiter((number for number, _ in words), np.uint64, len(words))
    found = [
        numbers,
        _mix(numbers[:-1], numbers[1:]),
        np.concatenate([runs for _, runs in words] or [numbers]),
    ]
    if not text.isascii():
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        chinese = np.zeros(len(codes), bool)
        for first, last in _CHINESE:
            chinese |= (codes >= first) & (codes <= last)
        grams, inside = codes.astype(np.uint64), chinese
        found.append(grams[inside] * _MULTIPLIER)
        for size in (2, 3):  # Chinese: characters, pairs and triples instead of words
            inside = inside[:-1] & chinese[size - 1 :]
            grams = _mix(grams[:-1], codes[size - 1 :].astype(np.uint64))
            found.append(grams[inside])
    shift = np.uint64(64 - settings.bits)
    return np.unique(np.concatenate(found) >> shift).astype(np.int64)


def _mix(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Combines two arrays of integers; the high bits depend on all bits of both."""
    mixed = (one ^ (one >> np.uint64(31))) * _MULTIPLIER + other  # wraps around 2^64 on purpose
    return (mixed ^ (mixed >> np.uint64(31))) * _MULTIPLIER


@functools.lru_cache(maxsize=1 << 17)
def _of_word(word: str) -> tuple[int, np.ndarray]:
    """Returns the hash of a word and those of its character trigrams.

    Variants of a word share some trigrams. The hashes are the same in every process.
    """
    marked = f"<{word}>"
    runs = range(len(marked) - 2) if 4 <= len(word) <= 30 else ()
    return _hash(word), np.asarray([_hash("#" + marked[i : i + 3]) for i in runs], np.uint64)


def _hash(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


@dataclasses.dataclass(frozen=True)
class LinearFilter:
    """A trained filter. Create one with `train` or `load`."""

    settings: FilterSettings
    weights: np.ndarray  # float32 [2^bits]
    bias: float
    threshold: float  # a text is marked if its score is at least this
    label: str  # name of the positive class, such as "good" or "offensive"

    def score(self, text: str) -> float:
        """Returns the probability that the text is `label`."""
        ids = features(text, self.settings)
        total = self.bias + float(self.weights[ids].sum()) / max(len(ids), 1) ** 0.5
        return 1 / (1 + float(np.exp(-np.clip(total, -60, 60))))

    def save(self, path: str | os.PathLike) -> None:
        """Writes one .npz file with weights, threshold and settings."""
        np.savez_compressed(
            path,
            weights=self.weights.astype(np.float16),
            bias=self.bias,
            label=self.label,
            threshold=self.threshold,
            **{
                f"settings_{name}": value
                for name, value in dataclasses.asdict(self.settings).items()
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LinearFilter":
        """Loads a filter written by `save`.

        Raises:
          DataError: the file is missing or is not a saved filter.
        """
        try:
            with np.load(path) as file:
                settings = FilterSettings(
                    **{
                        field.name: file[f"settings_{field.name}"].item()
                        for field in dataclasses.fields(FilterSettings)
                    }
                )
                return cls(
                    settings=settings,
                    weights=file["weights"].astype(np.float32),
                    bias=file["bias"].item(),
                    threshold=file["threshold"].item(),
                    label=file["label"].item(),
                )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"cannot read the filter: {error}.",
                str(path),
                "train one with `python -m experiments.train_filter --help`.",
            ) from error


def train(
    texts: Sequence[str],
    labels: Sequence[bool],
    *,
    label: str,
    held_out: tuple[Sequence[str], Sequence[bool]],
    settings: FilterSettings = RECIPE,
) -> LinearFilter:
    """Trains a filter on labeled texts. The result is deterministic.

    Args:
      texts: training texts.
      labels: whether each text belongs to the positive class.
      label: name of the positive class.
      held_out: texts and labels that set the threshold; they are not trained on.
      settings: training settings.

    Raises:
      DataError: all labels of a set are the same.
      ConfigError: no threshold reaches settings.precision on the held-out labels.
    """
    for name, kinds in (
        ("training", set(map(bool, labels))),
        ("held-out", set(map(bool, held_out[1]))),
    ):
        if len(kinds) < 2:
            raise DataError(
                f"all {name} labels are the same.",
                "train(labels)",
                f"provide texts that are {label!r} and texts that are not.",
            )
    ids = [features(text, settings) for text in texts]
    weights = np.zeros(1 << settings.bits, np.float64)
    gradients = np.full(1 << settings.bits, 1e-2)
    bias, bias_gradient = 0.0, 1e-2
    targets = np.asarray(labels, np.float64)
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        for i in rng.permutation(len(ids)):
            scale = 1 / max(len(ids[i]), 1) ** 0.5
            z = bias + weights[ids[i]].sum() * scale
            error = 1 / (1 + np.exp(-np.clip(z, -60, 60))) - targets[i]
            step = error * scale + settings.l2 * weights[ids[i]]
            gradients[ids[i]] += step * step
            weights[ids[i]] -= settings.learning_rate * step / np.sqrt(gradients[ids[i]])
            bias_gradient += error * error
            bias -= settings.learning_rate * error / bias_gradient**0.5
    # Weights are rounded to float16 as in the file: saving a filter does not change its scores.
    model = LinearFilter(
        settings=settings,
        weights=weights.astype(np.float16).astype(np.float32),
        bias=float(bias),
        threshold=1.0,
        label=label,
    )
    scores = np.asarray([model.score(text) for text in held_out[0]])
    return dataclasses.replace(
        model,
        threshold=threshold_for(
            scores, np.asarray(held_out[1], bool), precision=settings.precision
        ),
    )


def threshold_for(scores: np.ndarray, labels: np.ndarray, *, precision: float) -> float:
    """Returns the lowest threshold whose marked texts (score >= threshold) reach this precision.

    Raises:
      ConfigError: no threshold reaches the precision.
    """
    order = np.argsort(-scores, kind="stable")
    true_positives = np.cumsum(labels[order])
    last_of_equal = np.append(scores[order][1:] != scores[order][:-1], True)
    precisions = true_positives / np.arange(1, len(scores) + 1)
    reached = np.flatnonzero(last_of_equal & (precisions >= precision))
    if not len(reached):
        raise ConfigError(
            f"no threshold reaches a precision of {precision} on the held-out labels.",
            "precision",
            "lower the precision, or provide more or cleaner labels.",
        )
    return float(scores[order][reached[-1]])


@functools.lru_cache(maxsize=4)
def _loaded(path: str) -> LinearFilter:
    return LinearFilter.load(path)


@dataclasses.dataclass(frozen=True)
class LinearFilterStage:
    """Writes scores to the column `score_COLUMN` and rejects texts by the filter's decision."""

    name: ClassVar[str] = "linear_filter"
    counted: ClassVar[tuple[str, ...]] = ()
    model: str  # an .npz file written by experiments.train_filter
    column: str  # name of the score, such as "quality" or "offensive"
    keep_marked: bool  # whether the filter marks good text (kept) or bad text (rejected)
    kinds: tuple[str, ...] = (
        "web",
        "text",
        "documentation",
        "instruction",
    )  # kinds of documents to score; others are kept

    def __call__(self, table):
        model = _loaded(self.model)
        scores = [
            model.score(text) if kind in self.kinds else None
            for text, kind in zip(table["text"].to_pylist(), table["kind"].to_pylist(), strict=True)
        ]
        table = stage.set_column(table, f"score_{self.column}", scores, stage.pa.float32())
        return stage.reject(
            table,
            [
                None
                if score is None or (score >= model.threshold) == self.keep_marked
                else (self.column, score)
                for score in scores
            ],
        )
