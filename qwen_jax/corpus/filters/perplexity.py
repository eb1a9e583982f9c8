"""Rejects text whose perplexity is too high or too low. Report: 2.1 (models).

There are two scorers: an n-gram model fitted to clean text (corpus/filters/ngram.py), which needs
only numpy, and a model checkpoint, which scores batches. Both report bits per byte, which does not
depend on the tokenizer. The thresholds of an n-gram filter are quantiles of the scores of held-out
clean text. Each language has its own model and thresholds.

Shapes: B batch, T tokens.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from qwen_jax.config import option
from qwen_jax.corpus import stage
from qwen_jax.corpus.filters.ngram import NgramModel, _Level
from qwen_jax.errors import DataError
from qwen_jax.ranges import ONE_OR_MORE, Checked, Range
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer

Scorer = Callable[[Sequence[str]], np.ndarray]  # texts -> bits per byte, float64; NaN if empty
_LENGTHS = (128, 512, 2048)  # a checkpoint's batches are padded to one of these


@dataclasses.dataclass(frozen=True)
class PerplexityRules(Checked, where="--perplexity.{}"):
    """Settings of an n-gram filter."""

    order: int = option(3, "tokens per n-gram", Range(1, 10))
    characters: int = option(20_000, "characters scored from the start of each text", ONE_OR_MORE)
    strangest: float = option(
        0.01,
        "fraction of clean held-out text to reject as the least predictable",
        Range(0, below=1),
    )
    easiest: float = option(
        0.005,
        "fraction of clean held-out text to reject as the most predictable (boilerplate)",
        Range(0, below=1),
    )


RECIPE = PerplexityRules()


@dataclasses.dataclass(frozen=True)
class NgramFilter:
    """An n-gram model with thresholds on bits per byte. Create one with `fit` or `load`."""

    model: NgramModel
    tokenizer: str  # fingerprint of the tokenizer it was fitted with
    rules: PerplexityRules
    limits: tuple[float, float]  # (min, max) bits per byte of accepted text

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        held_out: Sequence[str],
        tokenizer: Tokenizer,
        *,
        rules: PerplexityRules = RECIPE,
    ) -> "NgramFilter":
        """Fits the model to clean texts and sets the thresholds on held-out clean texts.

        Args:
          texts: clean texts to fit the n-gram model to.
          held_out: other clean texts; quantiles of their scores are the thresholds.

        Raises:
          DataError: there are too few held-out texts for these quantiles.
        """
        needed = math.ceil(1 / min(rules.strangest, rules.easiest))
        if len(held_out) < needed:
            raise DataError(
                f"{len(held_out)} held-out texts are too few to reject a fraction of "
                f"{min(rules.strangest, rules.easiest):g}.",
                "NgramFilter.fit(held_out)",
                f"provide at least {needed}, or raise strangest and easiest.",
            )
        ids = [np.append(one, tokenizer.end_of_text) for one in tokenizer.encode_batch(texts)]
        model = NgramModel.fit(
            np.concatenate(ids).astype(np.int64), rules.order, vocab_size=tokenizer.vocab_size
        )
        unlimited = cls(model, tokenizer.fingerprint, rules, (0.0, math.inf))
        scores = unlimited.score(held_out, tokenizer)
        scores = scores[~np.isnan(scores)]
        return dataclasses.replace(
            unlimited,
            limits=(
                float(np.quantile(scores, rules.easiest)),
                float(np.quantile(scores, 1 - rules.strangest)),
            ),
        )

    def score(self, texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """Returns bits per byte of each text; float64 [num_texts].

        Raises:
          DataError: the tokenizer differs from the filter's.
        """
        if tokenizer.fingerprint != self.tokenizer:
            raise DataError(
                "the tokenizer's vocabulary differs from the filter's.",
                "NgramFilter.score",
                "use the tokenizer that the filter was fitted with.",
            )
        texts = [text[: self.rules.characters] for text in texts]
        start = np.asarray([tokenizer.end_of_text])  # precedes each document, as in training
        sequences = (
            np.concatenate((start, ids.astype(np.int64))) for ids in tokenizer.encode_batch(texts)
        )
        nats = [-float(self.model.log_probs(tokens)[1:].sum()) for tokens in sequences]
        return _bits_per_byte(nats, texts)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one .npz file."""
        arrays = {
            f"level{i}_{field.name}": getattr(level, field.name)
            for i, level in enumerate(self.model.levels)
            for field in dataclasses.fields(_Level)
        }
        np.savez_compressed(
            path,
            vocab_size=self.model.vocab_size,
            tokenizer=self.tokenizer,
            rules=np.asarray(dataclasses.astuple(self.rules), np.float64),
            limits=np.asarray(self.limits),
            **arrays,
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "NgramFilter":
        """Loads a filter written by `save`.

        Raises:
          DataError: the file is missing or is not a saved n-gram filter.
        """
        try:
            with np.load(path) as file:
                order, characters, strangest, easiest = file["rules"].tolist()
                rules = PerplexityRules(int(order), int(characters), strangest, easiest)
                levels = tuple(
                    _Level(
                        **{
                            field.name: file[f"level{i}_{field.name}"]
                            for field in dataclasses.fields(_Level)
                        }
                    )
                    for i in range(rules.order)
                )
                return cls(
                    NgramModel(vocab_size=file["vocab_size"].item(), levels=levels),
                    file["tokenizer"].item(),
                    rules,
                    tuple(file["limits"].tolist()),
                )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"cannot read the n-gram filter: {error}.",
                str(path),
                "fit a new one with NgramFilter.fit(...).save(path).",
            ) from error


def checkpoint_scorer(
    folder: str | os.PathLike, tokenizer: str | None = None, *, batch_tokens: int = 16384
) -> Scorer:
    """Returns a scorer that uses a checkpoint; it scores the first 2,048 tokens of a text.

    Args:
      folder: a run folder or a released Qwen.
      tokenizer: its file or folder; None uses the one in the folder.
      batch_tokens: approximate number of tokens in a batch.

    Raises:
      ConfigError: the tokenizer is missing or belongs to another model.
      CheckpointError, TokenizerError: files are missing or corrupted.
    """
    import jax  # only checkpoints need JAX

    from qwen_jax.pretrained.load import load_model

    config, params, coder = load_model(str(folder), tokenizer)
    score = jax.jit(functools.partial(_nats_per_example, config=config))

    def scorer(texts: Sequence[str]) -> np.ndarray:
        ids = [one[: _LENGTHS[-1]] for one in coder.encode_batch(texts)]
        scored = [
            coder.decode(one) if len(one) == _LENGTHS[-1] else text
            for one, text in zip(ids, texts, strict=True)
        ]
        nats = np.zeros(len(texts))
        for shorter, length in zip((0, *_LENGTHS), _LENGTHS, strict=False):
            fitting = [i for i, one in enumerate(ids) if shorter < len(one) <= length]
            batch = max(1, batch_tokens // length)
            for first in range(0, len(fitting), batch):
                chosen = fitting[first : first + batch]
                tokens = np.full((batch, length + 1), coder.end_of_text, np.int32)
                weights = np.zeros((batch, length), np.float32)
                for row, i in enumerate(chosen):
                    tokens[row, 1 : len(ids[i]) + 1] = ids[i]
                    weights[row, : len(ids[i])] = 1
                nats[chosen] = np.asarray(score(params, tokens[:, :-1], tokens[:, 1:], weights))[
                    : len(chosen)
                ]
        return _bits_per_byte(nats, scored)

    return scorer


def _nats_per_example(params, tokens_BT, targets_BT, weights_BT, *, config):
    """Returns -log p summed over the weighted tokens of each example; float32 [B]."""
    import jax
    import jax.numpy as jnp

    from qwen_jax.model.lm_loss import cross_entropy
    from qwen_jax.model.transformer import head_matrix, hidden_states

    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    x_BTD = hidden_states(params, tokens_BT, positions_BT, config=config)
    head = head_matrix(params)
    return jax.lax.map(
        lambda one: cross_entropy(one[0][None], head, one[1][None], one[2][None])[1],
        (x_BTD, targets_BT, weights_BT),
    )


def _bits_per_byte(nats: Sequence[float] | np.ndarray, texts: Sequence[str]) -> np.ndarray:
    sizes = np.asarray([len(text.encode("utf-8", "replace")) for text in texts], np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sizes > 0, np.asarray(nats) / np.log(2) / sizes, np.nan)


@functools.lru_cache(maxsize=8)
def _loaded(path: str) -> NgramFilter:
    return NgramFilter.load(path)


@functools.lru_cache(maxsize=2)
def _tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(path)


@functools.lru_cache(maxsize=1)
def _scorer(folder: str, tokenizer: str | None) -> Scorer:
    return checkpoint_scorer(folder, tokenizer)


@dataclasses.dataclass(frozen=True)
class PerplexityStage:
    """Scores text with n-gram models and writes the column `score_bits_per_byte`.

    Rejects text with too many bits per byte (`too_strange`) or too few (`too_easy`).
    """

    name: ClassVar[str] = "perplexity"
    counted: ClassVar[tuple[str, ...]] = ()
    models: tuple[tuple[str, str], ...]  # (language, .npz file of its NgramFilter) pairs
    tokenizer: str  # its file or folder; they were fitted with it
    kinds: tuple[str, ...] = ("web", "text")  # kinds to score; others are kept

    def __call__(self, table):
        texts = table["text"].to_pylist()
        scores = np.full(len(texts), np.nan)
        verdicts: list[stage.Verdict] = [None] * len(texts)
        rows = list(zip(table["language"].to_pylist(), table["kind"].to_pylist(), strict=True))
        for language, path in self.models:
            chosen = [
                i for i, row in enumerate(rows) if row[0] == language and row[1] in self.kinds
            ]
            if not chosen:
                continue
            model = _loaded(path)
            found = model.score([texts[i] for i in chosen], _tokenizer(self.tokenizer))
            for i, score in zip(chosen, found.tolist(), strict=True):
                scores[i] = score
                if score > model.limits[1]:
                    verdicts[i] = ("too_strange", score)
                elif score < model.limits[0]:
                    verdicts[i] = ("too_easy", score)
        table = stage.set_column(
            table,
            "score_bits_per_byte",
            stage.pa.array(scores, stage.pa.float32(), from_pandas=True),
        )
        return stage.reject(table, verdicts)


@dataclasses.dataclass(frozen=True)
class CheckpointPerplexityStage:
    """Scores text with a checkpoint and writes the column `score_model_bits_per_byte`.

    The thresholds are settings.
    """

    name: ClassVar[str] = "checkpoint_perplexity"
    counted: ClassVar[tuple[str, ...]] = ()
    checkpoint: str  # a run folder or a released Qwen
    max_bpb: float = dataclasses.field(
        metadata={"help": "bits per byte above which a text is rejected", "alias": "most"}
    )
    min_bpb: float = option(0.0, "bits per byte below which a text is rejected", alias="least")
    tokenizer: str | None = None  # its file or folder; None uses the one in `folder`
    kinds: tuple[str, ...] = ("web", "text")  # kinds to score; others are kept

    def __call__(self, table):
        chosen = [i for i, kind in enumerate(table["kind"].to_pylist()) if kind in self.kinds]
        scores = np.full(len(table), np.nan)
        if chosen:
            texts = table["text"].take(chosen).to_pylist()
            scores[chosen] = _scorer(self.checkpoint, self.tokenizer)(texts)
        table = stage.set_column(
            table,
            "score_model_bits_per_byte",
            stage.pa.array(scores, stage.pa.float32(), from_pandas=True),
        )
        return stage.reject(
            table,
            [
                ("too_strange", score)
                if score > self.max_bpb
                else ("too_easy", score)
                if score < self.min_bpb
                else None
                for score in scores.tolist()
            ],
        )
