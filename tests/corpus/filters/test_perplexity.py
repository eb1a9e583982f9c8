"""Perplexity filters: bits per byte, limits from clean text, and verdicts of the stages."""

import dataclasses
import functools
import math
import random

import jax
import numpy as np
import pyarrow as pa
import pytest

from qwen_jax import sizes
from qwen_jax.corpus.filters import perplexity as perplexity_filter
from qwen_jax.corpus.filters.perplexity import (
    CheckpointPerplexityStage,
    NgramFilter,
    PerplexityRules,
    PerplexityStage,
    checkpoint_scorer,
)
from qwen_jax.errors import DataError
from qwen_jax.model.spec import init_params
from qwen_jax.model.transformer import forward
from qwen_jax.pretrained.huggingface import save_pretrained
from qwen_jax.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)})
RULES = PerplexityRules(strangest=0.05, easiest=0.05)
WORDS = "the keeper of light saw a ship near rocks and wrote in his book that wind was high".split()


def clean(number, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(10, 30))) + "." for _ in range(number)]


@pytest.fixture(scope="module")
def ngram():
    return NgramFilter.fit(clean(200, 0), clean(100, 1), TOKENIZER, rules=RULES)


def test_ngram_filter_score_is_bits_per_byte_of_the_model(ngram):
    text = "the wind was high"
    nats = 0.0
    history = [TOKENIZER.end_of_text]
    for token in TOKENIZER.encode(text):
        nats -= math.log(ngram.model.distribution(history)[token])
        history.append(token)
    assert ngram.score([text], TOKENIZER)[0] == pytest.approx(nats / math.log(2) / len(text))
    assert np.isnan(ngram.score([""], TOKENIZER)[0])


def test_ngram_filter_limits_reject_the_given_fractions(ngram):
    scores = ngram.score(clean(100, 1), TOKENIZER)
    low, high = ngram.limits
    assert np.mean(scores > high) == pytest.approx(0.05, abs=0.011)
    assert np.mean(scores < low) == pytest.approx(0.05, abs=0.011)
    with pytest.raises(DataError, match="at least 20"):
        NgramFilter.fit(clean(30, 0), clean(19, 1), TOKENIZER, rules=RULES)


def test_perplexity_stage_rejects_strange_and_easy_text(ngram, tmp_path):
    ngram.save(tmp_path / "en.npz")
    TOKENIZER.save(tmp_path / "bytes.tiktoken")
    again = NgramFilter.load(tmp_path / "en.npz")
    assert again.limits == ngram.limits and again.rules == RULES
    easy = max(clean(400, 3), key=lambda t: ngram.limits[0] - ngram.score([t], TOKENIZER)[0])
    strange = "qzxj kvqw zzkq xjvw qqpz " * 4
    middle = min(
        clean(50, 2), key=lambda t: abs(ngram.score([t], TOKENIZER)[0] - np.mean(ngram.limits))
    )
    table = pa.table(
        {
            "text": [middle, strange, easy, strange, strange],
            "language": ["en", "en", "en", "de", "en"],
            "kind": ["web", "web", "web", "web", "code"],
        }
    )
    stage = PerplexityStage((("en", str(tmp_path / "en.npz")),), str(tmp_path / "bytes.tiktoken"))
    marked = stage(table)
    assert marked["rejected_by"].to_pylist() == [None, "too_strange", "too_easy", None, None]
    scores = marked["score_bits_per_byte"].to_pylist()
    assert scores[3:] == [None, None] and scores[1] > ngram.limits[1]
    other = Tokenizer({bytes([i]): 255 - i for i in range(256)})
    with pytest.raises(DataError, match="vocabulary differs"):
        ngram.score(["a"], other)


def test_checkpoint_scorer_agrees_with_forward_at_any_length(tmp_path, monkeypatch):
    monkeypatch.setattr(perplexity_filter, "_LENGTHS", (16, 64))
    config = dataclasses.replace(
        sizes.TINY, vocab_size=512, context_length=64, initializer_range=0.3
    )
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    # One length: no position sees a later one.
    logits_of = jax.jit(functools.partial(forward, config=config))
    save_pretrained(tmp_path / "model", config, params, tokenizer=TOKENIZER)
    texts = ["short", "a text of more than sixteen bytes, and no more", "", "x" * 100, "灯塔"]
    found = checkpoint_scorer(tmp_path / "model", batch_tokens=64)(texts)
    for text, score in zip(texts, found, strict=True):
        ids = TOKENIZER.encode(text)[:64]
        if not ids:
            assert np.isnan(score)
            continue
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(ids)] = [TOKENIZER.end_of_text, *ids][:-1]
        logits = np.asarray(logits_of(params, tokens)[0, : len(ids)], np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        nats = -logs[np.arange(len(ids)), ids].sum()
        assert score == pytest.approx(nats / math.log(2) / len(ids), rel=0.02)  # bfloat16
    table = pa.table({"text": texts, "kind": ["web"] * 4 + ["code"]})
    limit = float(found[1]) * 1.001  # the scores of another batch differ by rounding
    stage = CheckpointPerplexityStage(str(tmp_path / "model"), max_bpb=limit, min_bpb=0.0)
    marked = stage(table)
    assert marked["rejected_by"].to_pylist() == [
        "too_strange" if score > limit else None for score in found[:4]
    ] + [None]
    assert marked["score_model_bits_per_byte"].null_count == 2
