"""Scoring: log-probabilities of the full forward pass, with the same bits in any company."""

import dataclasses
import random

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.errors import DataError
from qwen_jax.inference.scoring import CHUNK, Row, Scorer
from qwen_jax.model.spec import init_params, param_specs
from qwen_jax.model.transformer import forward
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import sharding_for

CONFIG = dataclasses.replace(sizes.TINY, context_length=256, vocab_size=256, num_layers=2)
LENGTH = 200
full_forward = jax.jit(forward, static_argnames="config")


@pytest.fixture(scope="module")
def params():
    wide = dataclasses.replace(CONFIG, initializer_range=0.3)
    return jax.jit(init_params, static_argnums=0)(wide, jax.random.key(3))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Rows that share prefixes of several lengths; choices of letters, and long continuations."""
    rng, found = random.Random(0), []
    common = [rng.randrange(256) for _ in range(150)]
    for shared, own, scored in (
        (150, 20, 4), (150, 33, 4), (150, 33, 4), (150, 50, 30), (70, 90, 3), (63, 1, 2),
        (64, 64, 1),
        (0, 5, 5), (0, 1, 4), (10, 0, 0), (150, 49, 90), (128, 1, 1), (150, 50, 0),
    ):  # fmt: skip
        tokens = common[:shared] + [rng.randrange(256) for _ in range(own)]
        n = len(tokens)
        if scored <= 4:  # alternatives for the next token
            pairs = [(n - 1, rng.randrange(256)) for _ in range(scored)]
        else:
            pairs = [(n - scored + i, (*tokens, 7)[n - scored + i + 1]) for i in range(scored)]
        rng.shuffle(pairs)
        found.append(Row(tuple(tokens), tuple(pairs)))
    found.append(Row((1, 2), tuple((1, target) for target in range(256))))  # in four calls
    return found


@pytest.fixture(scope="module")
def scored(params, rows):
    scorer = Scorer(params, CONFIG, max_length=LENGTH)
    return dict(scorer.score(rows))


def test_scores_equal_the_full_forward(params, rows, scored):
    padded = np.zeros((len(rows), LENGTH), np.int32)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row.tokens)] = row.tokens
    logprobs = np.asarray(jax.nn.log_softmax(full_forward(params, padded, config=CONFIG)))
    for index, row in enumerate(rows):
        expected = [logprobs[index, position, target] for position, target in row.scored]
        np.testing.assert_allclose(scored[index].logprobs, expected, atol=3e-5)  # another order
        best = [logprobs[index, position].argmax() == target for position, target in row.scored]
        assert list(scored[index].most_likely) == best
    assert any(any(one.most_likely) for one in scored.values())


def test_scores_are_the_same_bits_in_any_company(params, rows, scored):
    alone = Scorer(params, CONFIG, max_length=LENGTH)  # its cache holds an earlier row
    for index in (3, 10, 0, 6):
        assert dict(alone.score([rows[index]]))[0] == scored[index]
    backwards = dict(alone.score(rows[::-1]))
    assert [backwards[len(rows) - 1 - index] for index in scored] == list(scored.values())
    plain = Scorer(params, CONFIG, max_length=LENGTH, share_prefixes=False, batch_size=7)
    assert dict(plain.score(rows)) == scored


def test_scores_are_the_same_bits_on_a_mesh_that_splits_rows(params, rows, scored):
    mesh = make_mesh(MeshConfig(data=2), devices=jax.devices()[:2])
    placed = jax.device_put(params, sharding_for(param_specs(CONFIG), mesh))
    assert dict(Scorer(placed, CONFIG, max_length=LENGTH, mesh=mesh).score(rows)) == scored


def test_score_computes_a_shared_prefix_once(params, rows, monkeypatch):
    run, calls = Scorer._run, []

    def counted(*arguments):
        calls.append(None)
        return run(*arguments)

    monkeypatch.setattr(Scorer, "_run", counted)
    # 90 scored tokens in the last two chunks fit into one call each.
    chunks = 3 + sum(-(-len(row.tokens) // CHUNK) for row in rows)
    for share in (False, True):
        calls.clear()
        done = []
        scorer = Scorer(params, CONFIG, max_length=LENGTH, share_prefixes=share)
        list(scorer.score(rows, progress=done.append))
        assert sum(done) == sum(len(row.tokens) for row in rows)
        assert len(calls) == chunks if not share else len(calls) < chunks - 10


@pytest.mark.parametrize(
    "row, word",
    [
        (Row((), ()), "0 tokens"),
        (Row((1,) * (LENGTH + 1), ()), "201 tokens"),
        (Row((1, 256), ()), "outside"),
        (Row((1,), ((0, -1),)), "outside"),
        (Row((1,), ((1, 1),)), "position"),
    ],
)
def test_score_refuses_a_bad_row_before_computing_any(params, row, word):
    scorer = Scorer(params, CONFIG, max_length=LENGTH)
    with pytest.raises(DataError, match=f"(?s){word}"):
        next(scorer.score([Row((1,), ((0, 1),)), row]))


def test_score_refuses_weights_without_finite_results(params):
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), params)
    with pytest.raises(DataError, match="(?s)not finite.*row 0"):
        list(Scorer(broken, CONFIG, max_length=CHUNK).score([Row((1,), ((0, 1),))]))
