"""The sampler against definitions by sorting, and its frequencies against its probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.inference import logits as filters


def _logits(rows=4, vocab=97, scale=3.0, seed=0):
    return (np.random.default_rng(seed).normal(size=(rows, vocab)) * scale).astype(np.float32)


def _nucleus_by_sorting(logits, p):
    """The kept set, by the definition: the shortest head of the sorted list, and what ties."""
    probs = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    probs /= probs.sum(axis=1, keepdims=True)
    kept = np.zeros(logits.shape, bool)
    for row, prob in zip(kept, probs, strict=True):
        order = np.argsort(-prob)
        count = int(np.searchsorted(np.cumsum(prob[order]), p)) + 1
        row[:] = prob >= prob[order[min(count, len(order)) - 1]]
    return kept


@pytest.mark.parametrize("p", [0.001, 0.3, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_top_p_keeps_what_sorting_keeps(p, scale):
    logits = _logits(rows=8, vocab=1000, scale=scale)
    kept = np.isfinite(np.asarray(filters.keep_top_p(logits, p)))
    np.testing.assert_array_equal(kept, _nucleus_by_sorting(logits, p))


def test_top_p_keeps_ties_and_leaves_kept_logits_alone():
    logits = np.log(np.asarray([[0.4, 0.2, 0.2, 0.1, 0.1]], np.float32))
    out = np.asarray(filters.keep_top_p(logits, 0.5))
    np.testing.assert_array_equal(out, np.where([[1, 1, 1, 0, 0]], logits, -np.inf))


def test_top_p_of_one_keeps_even_what_has_no_probability():
    logits = np.asarray([[0.0, -200.0, -1e9]], np.float32)
    np.testing.assert_array_equal(np.asarray(filters.keep_top_p(logits, 1.0)), logits)


def test_top_p_may_differ_by_row():
    logits = _logits(rows=3)
    p = np.asarray([0.2, 0.7, 0.95], np.float32)
    together = np.asarray(filters.keep_top_p(logits, p))
    for row in range(3):
        alone = np.asarray(filters.keep_top_p(logits[row : row + 1], p[row]))
        np.testing.assert_array_equal(together[row : row + 1], alone)


@pytest.mark.parametrize("k", [1, 2, 17, 96, 97, 1000])
def test_top_k_keeps_the_k_largest(k):
    logits = _logits()
    logits[0, :5] = [0.0, -0.0, -np.inf, 1e30, -1e30]
    kept = filters.keep_top_k(logits, k)
    smallest = np.sort(logits, axis=1)[:, ::-1][:, min(k, logits.shape[1]) - 1]
    np.testing.assert_array_equal(
        np.asarray(kept), np.where(logits >= smallest[:, None], logits, -np.inf)
    )


def test_top_k_keeps_what_ties_with_the_kth_zero_of_either_sign_included():
    logits = np.asarray([[1.0, 0.0, -0.0, -1.0]], np.float32)
    kept = np.isfinite(np.asarray(filters.keep_top_k(logits, 2)))
    np.testing.assert_array_equal(kept, [[True, True, True, False]])


def test_samples_come_as_often_as_their_probabilities_say():
    logits = jnp.asarray(_logits(rows=1, vocab=12, scale=1.5))
    temperature, p, draws = 0.7, 0.9, 40_000
    filtered = filters.keep_top_p(filters.scale_temperature(logits, temperature), p)
    keys = filters.row_keys(jnp.zeros(draws, jnp.uint32), jnp.arange(draws, dtype=jnp.uint32))
    tokens = np.asarray(filters.sample(jnp.tile(filtered, (draws, 1)), keys, 3))
    expected = np.asarray(jax.nn.softmax(filtered[0]))
    frequencies = np.bincount(tokens, minlength=12) / draws
    assert (frequencies[expected == 0] == 0).all() and (expected == 0).any()
    # Four standard errors of a frequency.
    assert (np.abs(frequencies - expected) <= 4 * np.sqrt(expected / draws)).all()


def test_a_draw_depends_on_its_own_key_and_step_alone():
    logits = np.tile(_logits(rows=1, vocab=5000, scale=0.1), (6, 1))
    seeds, streams = (
        np.asarray([7, 7, 8, 8, 7, 9], np.uint32),
        np.asarray([0, 1, 0, 1, 0, 0], np.uint32),
    )
    drawn = np.asarray(filters.sample(logits, filters.row_keys(seeds, streams), 2))
    assert drawn[0] == drawn[4] and len(set(drawn.tolist())) == 5
    for row in range(6):
        keys = filters.row_keys(seeds[row : row + 1], streams[row : row + 1])
        assert filters.sample(logits[:1], keys, 2)[0] == drawn[row]
        assert filters.sample(logits[:1], keys, 3)[0] != drawn[row]


def test_greedy_takes_the_first_of_the_largest_and_padding_ids_are_excluded():
    logits = np.asarray([[0.0, 2.0, 2.0, 5.0], [1.0, 0.0, 0.0, 9.0]], np.float32)
    allowed = filters.allow_below(logits, 3)
    np.testing.assert_array_equal(np.asarray(filters.greedy(allowed)), [1, 0])
