"""A linear classifier over hashed n-grams: text quality, offensive text. Report: 2.1 (models).

    p(positive | text) = sigmoid(b + sum over n-grams g of the text: w[hash(g)] f(g))

where the n-grams are words, pairs of words, runs of three characters within words, and of one to
three in Chinese; f(g) is 1 for each different n-gram, divided by the root of their number. It is
trained by AdaGrad on the logistic loss; the threshold is the lowest one whose precision on held-out
labels is as asked. Only numpy is needed, for training as for scoring.
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

_WORD = re.compile(r"[^\W_\u3007\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]|\n")
_CHINESE = ((0x3007, 0x3007), (0x3040, 0x30FF), (0x3400, 0x9FFF))  # code points, kana among them
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class FilterSettings:
    """Of training; saved with the weights."""

    bits: int = option(20, "2^bits weights of 4 bytes")
    characters: int = option(20_000, "of a text's beginning that are looked at")
    epochs: int = option(10, "passes over the texts")
    learning_rate: float = option(0.5, "of AdaGrad")
    l2: float = option(1e-5, "at every update of a weight")
    seed: int = option(0, "of the order of texts")
    precision: float = option(0.9, "on held-out labels, of what is marked; sets the threshold")


RECIPE = FilterSettings()


def features(text: str, settings: FilterSettings = RECIPE) -> np.ndarray:
    """Different hashed n-grams of a text, sorted; int64 [num_features]."""
    text = text[: settings.characters].lower()
    words = [_of_word(word) for word in _WORD.findall(text)]
    numbers = np.fromiter((number for number, _ in words), np.uint64, len(words))
    found = [
        numbers,
        _mix(numbers[:-1], numbers[1:]),
        np.concatenate([pieces for _, pieces in words] or [numbers]),
    ]
    if not text.isascii():
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        chinese = np.zeros(len(codes), bool)
        for first, last in _CHINESE:
            chinese |= (codes >= first) & (codes <= last)
        grams, inside = codes.astype(np.uint64), chinese
        found.append(grams[inside] * _MULTIPLIER)
        for size in (2, 3):  # characters, pairs and triples stand for words
            inside = inside[:-1] & chinese[size - 1 :]
            grams = _mix(grams[:-1], codes[size - 1 :].astype(np.uint64))
            found.append(grams[inside])
    shift = np.uint64(64 - settings.bits)
    return np.unique(np.concatenate(found) >> shift).astype(np.int64)


def _mix(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two numbers, another whose high bits depend on all of theirs."""
    mixed = (one ^ (one >> np.uint64(31))) * _MULTIPLIER + other  # wraps around 2^64, as it should
    return (mixed ^ (mixed >> np.uint64(31))) * _MULTIPLIER


@functools.lru_cache(maxsize=1 << 17)
def _of_word(word: str) -> tuple[int, np.ndarray]:
    """Its hash, and those of the runs of three characters in it, so that spellings of one word have
    something in common; the same in every process."""
    marked = f"<{word}>"
    runs = range(len(marked) - 2) if 4 <= len(word) <= 30 else ()
    return _hash(word), np.asarray([_hash("#" + marked[i : i + 3]) for i in runs], np.uint64)


def _hash(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


@dataclasses.dataclass(frozen=True)
class LinearFilter:
    """Made by `train` or `load`."""

    settings: FilterSettings
    weights: np.ndarray  # float32 [2^bits]
    bias: float
    threshold: float  # texts with a score at or above it are marked
    label: str  # what a positive text is, such as "good" or "offensive"

    def score(self, text: str) -> float:
        """The probability that the text is `label`."""
        ids = features(text, self.settings)
        total = self.bias + float(self.weights[ids].sum()) / max(len(ids), 1) ** 0.5
        return 1 / (1 + float(np.exp(-np.clip(total, -60, 60))))

    def save(self, path: str | os.PathLike) -> None:
        """One .npz file with weights, threshold and settings."""
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
        """Raises:
        DataError: the file is missing, or no filter.
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
                f"no filter: {error}.",
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
    """Learns from labeled texts; the same numbers for the same texts, labels and settings.

    Args:
      labels: whether each text is `label`.
      held_out: texts and labels that choose the threshold, and are not learned from.

    Raises:
      DataError: only one kind of label, in either set.
      ConfigError: no threshold reaches settings.precision on the held-out labels.
    """
    for name, kinds in (
        ("training", set(map(bool, labels))),
        ("held-out", set(map(bool, held_out[1]))),
    ):
        if len(kinds) < 2:
            raise DataError(
                f"the {name} labels are all alike.",
                "train(labels)",
                "give texts that are, and texts that are not.",
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
    # As the file keeps them, so that a score is the same before and after saving.
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
    """The lowest threshold at which the marked texts (score >= threshold) have this precision.

    Raises:
      ConfigError: there is none.
    """
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(labels[order])
    last_of_equal = np.append(scores[order][1:] != scores[order][:-1], True)
    reached = np.flatnonzero(last_of_equal & (right / np.arange(1, len(scores) + 1) >= precision))
    if not len(reached):
        raise ConfigError(
            f"no threshold has a precision of {precision} on the held-out labels.",
            "precision",
            "ask for less, or give more and cleaner labels.",
        )
    return float(scores[order][reached[-1]])


@functools.lru_cache(maxsize=4)
def _loaded(path: str) -> LinearFilter:
    return LinearFilter.load(path)


@dataclasses.dataclass(frozen=True)
class LinearFilterStage:
    """Scores in the column `score_COLUMN`; rejects what is marked, or what is not marked."""

    name: ClassVar[str] = "linear_filter"
    counted: ClassVar[tuple[str, ...]] = ()
    model: str  # an .npz file that experiments.train_filter wrote
    column: str  # of the scores, such as "quality" or "offensive"
    keep_marked: bool  # True: a filter that marks good text; False: one that marks bad text
    kinds: tuple[str, ...] = ("web", "text", "documentation", "instruction")  # code is not judged

    def __call__(self, table):
        model = _loaded(self.model)
        judged = [kind in self.kinds for kind in table["kind"].to_pylist()]
        scores = [
            model.score(text) if judge else None
            for text, judge in zip(table["text"].to_pylist(), judged, strict=True)
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
