"""The public op: the definition, where queries stand, refusals; and the gate of the XLA path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.errors import KernelError
from qwen_jax.kernels.attention import attention
from qwen_jax.kernels.gate import Case
from gate import Gate, masks, pytest_generate_tests  # noqa: F401

ANYWHERE = ("reference", "xla")


def make(seed, B=2, T=40, N=4, K=2, H=16, S=None, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    S = S or T
    q = jax.random.normal(keys[0], (B, T, N, H), dtype)
    k = jax.random.normal(keys[1], (B, S, K, H), dtype)
    v = jax.random.normal(keys[2], (B, S, K, H), dtype)
    dout = jax.random.normal(keys[3], (B, T, N, H), dtype)
    return q, k, v, dout


def packed(B, T, lengths, padding=0):
    """Row of documents of these lengths over and over, padding at the end, int32 [B, T]."""
    ids, i = [], 1
    while len(ids) < T - padding:
        ids += [i] * lengths[(i - 1) % len(lengths)]
        i += 1
    row = ids[:T - padding] + [0] * padding
    return jnp.tile(jnp.asarray(row, jnp.int32)[None], (B, 1))


def naive(q, k, v, segment_ids=None, window=None, scale=None):
    """One query at a time in float64 numpy: written apart from both back ends."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(T):
            at = t + S - T
            seen = [s for s in range(at + 1)
                    if (segment_ids is None or (segment_ids[b, s] == segment_ids[b, t] != 0))
                    and (window is None or at - s < window)]
            if not seen:
                continue
            for n in range(N):
                scores = k[b, seen, n // (N // K)] @ q[b, t, n] * (scale or H ** -0.5)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights @ v[b, seen, n // (N // K)] / weights.sum()
    return out


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("options", [
    {}, {"window": 1}, {"window": 7}, {"scale": 0.3}, {"segments": [3, 1, 9]},
    {"segments": [5], "padding": 6, "window": 3}])
def test_forward_equals_the_naive_loop(name, options):
    q, k, v, _ = make(0, T=23)
    options = dict(options)
    lengths, padding = options.pop("segments", None), options.pop("padding", 0)
    ids = None if lengths is None else packed(2, 23, lengths, padding)
    out = attention(q, k, v, segment_ids=ids, implementation=name, **options)
    np.testing.assert_allclose(out, naive(q, k, v, ids, **options), atol=3e-6)


@pytest.mark.parametrize("name", ANYWHERE)
def test_fewer_queries_than_keys_are_the_last_ones_or_where_told(name):
    q, k, v, _ = make(6, T=30)
    whole = attention(q, k, v, implementation=name)
    np.testing.assert_allclose(attention(q[:, -5:], k, v, implementation=name), whole[:, -5:],
                               atol=1e-6)
    at = jnp.tile(jnp.asarray([[3, 17]], jnp.int32), (2, 1))
    some = attention(q[:, at[0]], k, v, positions=at, implementation=name)
    np.testing.assert_allclose(some, whole[:, at[0]], atol=1e-6)


class TestXla(Gate):
    name = "xla"
    H = 16
    grid = [Case(T=T, N=4, K=2, H=16, dtype=dtype, **mask)
            for T in (1, 7, 128, 129, 300, 1000) for dtype in Gate.dtypes
            for mask in masks(T).values()]


def test_xla_memory_grows_with_the_length_and_not_with_its_square():
    def temp_bytes(T):
        shape = jax.ShapeDtypeStruct((1, T, 2, 64), jnp.float32)
        grad = jax.jit(jax.grad(lambda *a: jnp.sum(attention(*a, implementation="xla")),
                                argnums=(0, 1, 2)))
        return grad.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    short, long = temp_bytes(2048), temp_bytes(8192)
    assert long < 5 * short
    assert long < 2 * 8192 * 8192 * 4 / 2  # half of one float32 square of scores


@pytest.mark.parametrize("change, message", [
    ({"k": (2, 40, 3, 16)}, "do not divide|differ"),
    ({"k": (2, 40, 2, 8)}, "head sizes differ"),
    ({"q": (40, 4, 16)}, "4 dimensions"),
    ({"q": (2, 50, 4, 16)}, "last T of S")])
def test_shapes_that_do_not_fit_are_refused(change, message):
    q, k, v, _ = make(8)
    arrays = {"q": q, "k": k, "v": v} | {n: jnp.zeros(s) for n, s in change.items()}
    if "k" in change:
        arrays["v"] = arrays["k"]
    with pytest.raises(KernelError, match=message):
        attention(arrays["q"], arrays["k"], arrays["v"])


def test_bad_values_are_refused_before_compilation():
    q, k, v, _ = make(9)
    with pytest.raises(KernelError, match="window=0 hides every token"):
        attention(q, k, v, window=0)
    with pytest.raises(KernelError, match="not contiguous"):
        attention(q, k, v, segment_ids=jnp.asarray([[1, 2] * 20] * 2, jnp.int32))
    with pytest.raises(KernelError, match="dtypes differ"):
        attention(q, k.astype(jnp.bfloat16), v)
    with pytest.raises(KernelError, match="did you mean 'xla'"):
        attention(q, k, v, implementation="xxla")
    with pytest.raises(KernelError, match="int32"):
        attention(q, k, v, segment_ids=jnp.ones((2, 40), jnp.float32))
    with pytest.raises(KernelError, match="positions reach outside"):
        attention(q[:, :1], k, v, positions=jnp.full((2, 1), 40, jnp.int32))
