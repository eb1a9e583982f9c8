"""Text that a language model finds too strange, or too easy, is left out. Report: 2.1 (models).

Two scorers: an n-gram model that counts clean text (corpus/filters/ngram.py), which needs only
numpy, and a checkpoint of ours, scored in batches. Both give bits per byte of the text, whatever a
tokenizer cuts it into. The limits of an n-gram filter are read off clean text that it has not
learned from; a language has a model and limits of its own.

B rows of a batch, T tokens of a row.
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
from qwen_jax.tokenizer.bpe import Tokenizer

Scorer = Callable[[Sequence[str]], np.ndarray]  # texts -> bits per byte, float64; NaN of no tokens
_LENGTHS = (128, 512, 2048)  # rows of a checkpoint's batches are padded to one of these


@dataclasses.dataclass(frozen=True)
class PerplexityRules:
    """How an n-gram filter is made."""

    order: int = option(3, "tokens of an n-gram")
    characters: int = option(20_000, "of a text's beginning that are scored")
    strangest: float = option(
        0.01, "the part of clean held-out text that is given up for being strange"
    )
    easiest: float = option(
        0.005, "and for being easy: boilerplate that repeats what the model knows"
    )


RECIPE = PerplexityRules()


@dataclasses.dataclass(frozen=True)
class NgramFilter:
    """Made by `fit`. It marks what is outside of `limits`."""

    model: NgramModel
    tokenizer: str  # fingerprint of the vocabulary that it counted in
    rules: PerplexityRules
    limits: tuple[float, float]  # bits per byte: least and most

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        held_out: Sequence[str],
        tokenizer: Tokenizer,
        *,
        rules: PerplexityRules = RECIPE,
    ) -> "NgramFilter":
        """Counts clean texts, and reads the limits off other clean texts.

        Raises:
          DataError: too few held-out texts for a limit to mean something.
        """
        needed = math.ceil(1 / min(rules.strangest, rules.easiest))
        if len(held_out) < needed:
            raise DataError(
                f"{len(held_out)} held-out texts cannot tell which part of "
                f"{min(rules.strangest, rules.easiest):g} is outermost.",
                "NgramFilter.fit(held_out)",
                f"give {needed} or more, or give up a larger part.",
            )
        ids = [np.append(one, tokenizer.end_of_text) for one in tokenizer.encode_batch(texts)]
        model = NgramModel.fit(
            np.concatenate(ids).astype(np.int64), rules.order, vocab_size=tokenizer.vocab_size
        )
        made = cls(model, tokenizer.fingerprint, rules, (0.0, math.inf))
        scores = made.score(held_out, tokenizer)
        scores = scores[~np.isnan(scores)]
        return dataclasses.replace(
            made,
            limits=(
                float(np.quantile(scores, rules.easiest)),
                float(np.quantile(scores, 1 - rules.strangest)),
            ),
        )

    def score(self, texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """Bits per byte of each text; float64 [num_texts]."""
        if tokenizer.fingerprint != self.tokenizer:
            raise DataError(
                "the filter counted in another vocabulary.",
                "NgramFilter.score",
                "use the tokenizer that it was made with.",
            )
        texts = [text[: self.rules.characters] for text in texts]
        start = np.asarray([tokenizer.end_of_text])  # a document begins after the end of another
        rows = (
            np.concatenate((start, ids.astype(np.int64))) for ids in tokenizer.encode_batch(texts)
        )
        nats = [-float(self.model.log_probs(row)[1:].sum()) for row in rows]
        return _bits_per_byte(nats, texts)

    def save(self, path: str | os.PathLike) -> None:
        """One .npz file."""
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
        """Raises:
        DataError: the file is missing, or no such filter.
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
                f"no n-gram filter: {error}.",
                str(path),
                "make it again with NgramFilter.fit(...).save(path).",
            ) from error


def checkpoint_scorer(
    folder: str | os.PathLike, tokenizer: str | None = None, *, batch_tokens: int = 16384
) -> Scorer:
    """Bits per byte by a run folder or a released Qwen; a text's first 2,048 tokens are scored.

    Args:
      tokenizer: a .tiktoken file; None: the one in the folder.
      batch_tokens: about how many tokens are computed at once.

    Raises:
      ConfigError: no tokenizer is found, or one of another model.
      CheckpointError, TokenizerError: files that are missing or damaged.
    """
    import jax  # the n-gram model needs none of it

    from qwen_jax.pretrained.load import load_model

    config, params, coder = load_model(str(folder), tokenizer)
    score = jax.jit(functools.partial(_nats_of_rows, config=config))

    def scorer(texts: Sequence[str]) -> np.ndarray:
        ids = [one[: _LENGTHS[-1]] for one in coder.encode_batch(texts)]
        scored = [
            coder.decode(one) if len(one) == _LENGTHS[-1] else text
            for one, text in zip(ids, texts, strict=True)
        ]
        nats = np.zeros(len(texts))
        for shorter, length in zip((0, *_LENGTHS), _LENGTHS, strict=False):
            rows = [i for i, one in enumerate(ids) if shorter < len(one) <= length]
            batch = max(1, batch_tokens // length)
            for first in range(0, len(rows), batch):
                chosen = rows[first : first + batch]
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


def _nats_of_rows(params, tokens_BT, targets_BT, weights_BT, *, config):
    """-log p of the weighted tokens of each row; float32 [B]."""
    import jax
    import jax.numpy as jnp

    from qwen_jax.model.lm_loss import cross_entropy
    from qwen_jax.model.transformer import head_matrix, hidden_states

    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    x_BTD = hidden_states(params, tokens_BT, positions_BT, config=config)
    head = head_matrix(params)
    return jax.lax.map(
        lambda row: cross_entropy(row[0][None], head, row[1][None], row[2][None])[1],
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
    return Tokenizer.from_file(path)


@functools.lru_cache(maxsize=1)
def _scorer(folder: str, tokenizer: str | None) -> Scorer:
    return checkpoint_scorer(folder, tokenizer)


@dataclasses.dataclass(frozen=True)
class PerplexityStage:
    """Scores in the column `score_bits_per_byte`; rejects by `too_strange` and `too_easy`."""

    name: ClassVar[str] = "perplexity"
    counted: ClassVar[tuple[str, ...]] = ()
    models: tuple[tuple[str, str], ...]  # language and the .npz file of its NgramFilter
    tokenizer: str  # the .tiktoken file that they count in
    kinds: tuple[str, ...] = ("web", "text")  # what is judged; other kinds and languages are kept

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
    """The same by a checkpoint of ours, with limits given as numbers."""

    name: ClassVar[str] = "checkpoint_perplexity"
    counted: ClassVar[tuple[str, ...]] = ()
    checkpoint: str  # a run folder, or a released Qwen
    max_bpb: float = dataclasses.field(
        metadata={"help": "bits per byte; a text with more is too strange", "alias": "most"}
    )
    min_bpb: float = option(0.0, "a text with fewer is too easy", alias="least")
    tokenizer: str | None = None  # a .tiktoken file; None: the one in the folder
    kinds: tuple[str, ...] = ("web", "text")  # what is judged

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
