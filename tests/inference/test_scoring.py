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


def test_top_are_the_most_likely_ids_and_do_not_change_the_scores(params, rows, scored):
    scorer = Scorer(params, CONFIG, max_length=LENGTH, vocab_size=250)
    wanted = [dataclasses.replace(row, top=5) for row in rows]
    found = dict(scorer.score(wanted))
    padded = np.zeros((len(rows), LENGTH), np.int32)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row.tokens)] = row.tokens
    logprobs = np.asarray(jax.nn.log_softmax(full_forward(params, padded, config=CONFIG)))
    for index, row in enumerate(rows):
        assert len(found[index].top) == len(row.scored)
        for (position, target), one, logprob, likely in zip(
            row.scored, found[index].top, found[index].logprobs, found[index].most_likely,
            strict=True,
        ):  # fmt: skip
            ids, values = zip(*one, strict=True)
            real = logprobs[index, position, :250]
            np.testing.assert_allclose(values, np.sort(real)[::-1][:5], atol=3e-5)
            assert max(ids) < 250 and len(set(ids)) == 5
            if target in ids:  # the same number, to the last bit
                assert dict(one)[target] == logprob
            if likely and target < 250:
                assert ids[0] == target
        np.testing.assert_allclose(found[index].logprobs, scored[index].logprobs, atol=3e-5)
    assert all(one.top == () for one in scored.values())


def test_step_scores_rows_as_they_arrive_with_the_same_bits(params, rows, scored):
    scorer = Scorer(params, CONFIG, max_length=LENGTH)
    waiting, found = list(enumerate(rows)), {}
    while len(found) < len(rows):
        if waiting and scorer.free_slots:
            scorer.put(*waiting.pop(0))
            if len(waiting) == 5:
                scorer.drop(len(rows) - 6)  # and once more, after its first chunks are in the cache
                scorer.put(len(rows) - 6, rows[-6])
        found |= dict(scorer.step())
    assert found == scored


def test_step_computes_scored_chunks_once(params, monkeypatch):
    run, calls = Scorer._run, []
    monkeypatch.setattr(Scorer, "_run", lambda *arguments: (calls.append(0), run(*arguments))[1])
    tokens = tuple(range(150))
    other = (*tokens[:140], 9, 8)
    scorer = Scorer(params, CONFIG, max_length=LENGTH)

    def score(tokens, top=3, **fields):
        pairs = tuple((i, following) for i, following in enumerate((*tokens[1:], 0)))
        before = len(calls)
        found = dict(scorer.score([Row(tokens, pairs, top, **fields)]))[0]
        return found, len(calls) - before

    first, count = score(tokens)
    assert count == 3
    assert score(tokens) == (first, 1)  # the last chunk is always computed
    second, count = score(other)
    assert count == 1 and second.logprobs[:139] == first.logprobs[:139]
    assert second.top[:140] == first.top[:140] and second.top[141] != first.top[141]
    assert score(tokens, top=1)[0].top == tuple(one[:1] for one in first.top)
    assert score(tokens, top=0)[1] == 3  # another program, which may round differently
    plain = dict(Scorer(params, CONFIG, max_length=LENGTH).score([Row(other, (), 0)]))
    assert plain[0].logprobs == ()


def test_prompt_length_determines_the_rotation(params):
    config = dataclasses.replace(
        CONFIG,
        context_length=64,
        extension=dataclasses.replace(CONFIG.extension, dynamic_ntk=True, windows=None),
    )
    scorer = Scorer(params, config, max_length=LENGTH)
    row = Row(tuple(range(100)), ((99, 5),))
    (prompt,), (full,) = (
        [scores.logprobs[0] for _, scores in scorer.score([one])]
        for one in (dataclasses.replace(row, prompt_length=40), row)
    )
    off = dataclasses.replace(
        config, extension=dataclasses.replace(config.extension, dynamic_ntk=False)
    )
    (plain,) = [
        scores.logprobs[0] for _, scores in Scorer(params, off, max_length=LENGTH).score([row])
    ]
    assert prompt == pytest.approx(plain, abs=1e-5)  # 40 tokens need no NTK
    assert abs(full - plain) > 1e-3
