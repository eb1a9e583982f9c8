"""The filters against definitions by sorting, and sample frequencies against probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.inference import logits as filters

# One program each, not one per operation.
keep_top_p, keep_top_k = jax.jit(filters.keep_top_p), jax.jit(filters.keep_top_k)


def _logits(batch=4, vocab=97, scale=3.0, seed=0):
    return (np.random.default_rng(seed).normal(size=(batch, vocab)) * scale).astype(np.float32)


def _nucleus_by_sorting(logits, p):
    """The definition of the kept set: the shortest head of the sorted list, and ties."""
    probs = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    probs /= probs.sum(axis=1, keepdims=True)
    kept = np.zeros(logits.shape, bool)
    for mask, prob in zip(kept, probs, strict=True):
        order = np.argsort(-prob)
        count = int(np.searchsorted(np.cumsum(prob[order]), p)) + 1
        mask[:] = prob >= prob[order[min(count, len(order)) - 1]]
    return kept


@pytest.mark.parametrize("p", [0.001, 0.3, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_keep_top_p_equals_sorting(p, scale):
    logits = _logits(batch=8, vocab=1000, scale=scale)
    kept = np.isfinite(np.asarray(keep_top_p(logits, p)))
    np.testing.assert_array_equal(kept, _nucleus_by_sorting(logits, p))


def test_keep_top_p_keeps_ties_and_does_not_change_kept_logits():
    logits = np.log(np.asarray([[0.4, 0.2, 0.2, 0.1, 0.1]], np.float32))
    out = np.asarray(keep_top_p(logits, 0.5))
    np.testing.assert_array_equal(out, np.where([[1, 1, 1, 0, 0]], logits, -np.inf))


def test_keep_top_p_of_one_keeps_ids_of_probability_zero():
    logits = np.asarray([[0.0, -200.0, -1e9]], np.float32)
    np.testing.assert_array_equal(np.asarray(keep_top_p(logits, 1.0)), logits)


def test_keep_top_p_may_differ_by_sequence():
    logits = _logits(batch=3)
    p = np.asarray([0.2, 0.7, 0.95], np.float32)
    together = np.asarray(keep_top_p(logits, p))
    for i in range(3):
        separate = np.asarray(keep_top_p(logits[i : i + 1], p[i]))
        np.testing.assert_array_equal(together[i : i + 1], separate)


@pytest.mark.parametrize("k", [1, 2, 17, 96, 97, 1000])
def test_keep_top_k_keeps_the_k_largest(k):
    logits = _logits()
    logits[0, :5] = [0.0, -0.0, -np.inf, 1e30, -1e30]
    kept = keep_top_k(logits, k)
    smallest = np.sort(logits, axis=1)[:, ::-1][:, min(k, logits.shape[1]) - 1]
    np.testing.assert_array_equal(
        np.asarray(kept), np.where(logits >= smallest[:, None], logits, -np.inf)
    )


def test_keep_top_k_keeps_ties_including_negative_zero():
    logits = np.asarray([[1.0, 0.0, -0.0, -1.0]], np.float32)
    kept = np.isfinite(np.asarray(keep_top_k(logits, 2)))
    np.testing.assert_array_equal(kept, [[True, True, True, False]])


@jax.jit
def _sample(logits, seeds, streams, step):
    """As in a decoder: one program, not one per operation."""
    return filters.sample(logits, filters.sequence_keys(seeds, streams), step)


def test_sample_frequencies_match_the_probabilities():
    logits = jnp.asarray(_logits(batch=1, vocab=12, scale=1.5))
    temperature, p, count = 0.7, 0.9, 40_000

    @jax.jit
    def run():
        filtered = filters.keep_top_p(filters.scale_temperature(logits, temperature), p)
        seeds, streams = jnp.zeros(count, jnp.uint32), jnp.arange(count, dtype=jnp.uint32)
        tokens = _sample(jnp.tile(filtered, (count, 1)), seeds, streams, 3)
        return tokens, jax.nn.softmax(filtered[0])

    tokens, expected = jax.device_get(run())
    frequencies = np.bincount(tokens, minlength=12) / count
    assert (frequencies[expected == 0] == 0).all() and (expected == 0).any()
    # Four standard errors of a frequency.
    assert (np.abs(frequencies - expected) <= 4 * np.sqrt(expected / count)).all()


def test_sample_depends_only_on_its_key_and_step():
    logits = np.tile(_logits(batch=1, vocab=5000, scale=0.1), (6, 1))
    seeds, streams = (
        np.asarray([7, 7, 8, 8, 7, 9], np.uint32),
        np.asarray([0, 1, 0, 1, 0, 0], np.uint32),
    )
    samples = np.asarray(_sample(logits, seeds, streams, 2))
    assert samples[0] == samples[4] and len(set(samples.tolist())) == 5
    for i in range(6):
        one, stream = seeds[i : i + 1], streams[i : i + 1]
        assert _sample(logits[:1], one, stream, 2)[0] == samples[i]
        assert _sample(logits[:1], one, stream, 3)[0] != samples[i]


def test_greedy_takes_the_first_of_ties_and_allow_below_excludes_padding():
    logits = np.asarray([[0.0, 2.0, 2.0, 5.0], [1.0, 0.0, 0.0, 9.0]], np.float32)
    allowed = filters.allow_below(logits, 3)
    np.testing.assert_array_equal(np.asarray(filters.greedy(allowed)), [1, 0])
