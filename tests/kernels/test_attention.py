"""The gate that every attention back end passes: the definition, masks, gradients, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.errors import KernelError
from qwen_jax.kernels.attention import IMPLEMENTATIONS, attention

BACKENDS = [name for name in IMPLEMENTATIONS if name != "reference"]


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


def grads_of(implementation, q, k, v, dout, **options):
    def scalar(q, k, v):
        out = attention(q, k, v, implementation=implementation, **options)
        return jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32))

    return jax.jit(jax.grad(scalar, argnums=(0, 1, 2)))(q, k, v)


@pytest.mark.parametrize("name", list(IMPLEMENTATIONS))
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


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("T, mask, dtype", [
    (1, "causal", "float32"), (7, "padded", "bfloat16"), (128, "window", "float32"),
    (129, "packed", "bfloat16"), (300, "causal", "bfloat16"), (300, "packed", "float32"),
    (300, "window", "bfloat16"), (1000, "padded", "float32")])
def test_forward_and_gradients_keep_the_error_budget(name, T, mask, dtype):
    """Error against float32 at most twice what the plain definition makes in the same precision."""
    dtype = jnp.dtype(dtype)
    q, k, v, dout = make(T, T=T, N=4, K=2, H=16, dtype=dtype)
    options = {
        "causal": {}, "window": {"window": 100},
        "packed": {"segment_ids": packed(2, T, [60, 1, 130])},
        "padded": {"segment_ids": packed(2, T, [60, 1, 130], padding=T // 3)}}[mask]
    exact = [x.astype(jnp.float32) for x in (q, k, v, dout)]
    wanted = [attention(*exact[:3], implementation="reference", **options),
              *grads_of("reference", *exact, **options)]
    got = [attention(q, k, v, implementation=name, **options),
           *grads_of(name, q, k, v, dout, **options)]
    rough = functools.partial(in_precision, **options)
    plain = [rough(q, k, v), *jax.jit(jax.grad(
        lambda *a: jnp.sum(rough(*a).astype(jnp.float32) * exact[3]), argnums=(0, 1, 2)))(q, k, v)]
    for i, (want, have, rough) in enumerate(zip(wanted, got, plain)):
        assert have.dtype == dtype and np.all(np.isfinite(np.asarray(have, np.float32)))
        error = np.abs(np.asarray(have, np.float32) - want).max()
        budget = 2 * np.abs(np.asarray(rough, np.float32) - want).max()
        floor = 4 * float(jnp.finfo(dtype).eps) * float(jnp.abs(want).max()) + 1e-6
        assert error <= budget + floor, (i, error, budget)


def in_precision(q, k, v, segment_ids=None, window=None):
    """Plain softmax(q k) v with every array in the dtype of its inputs."""
    T, G = q.shape[1], q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, G, axis=2), jnp.repeat(v, G, axis=2)
    t = jnp.arange(T)
    mask = (t[None, :] <= t[:, None])[None]
    if window is not None:
        mask = mask & (t[:, None] - t[None, :] < window)[None]
    if segment_ids is not None:
        same = segment_ids[:, :, None] == segment_ids[:, None, :]
        mask = mask & same & (segment_ids != 0)[:, :, None]
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    mask = jnp.broadcast_to(mask[:, None], scores.shape)
    scores = jnp.where(mask, scores, jnp.asarray(-1e30, q.dtype))
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), jnp.asarray(0, q.dtype))
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v)


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_are_causal_and_stay_in_their_document(name):
    q, k, v, _ = make(3, B=1, T=260, N=2, K=2)
    ids = packed(1, 260, [100])

    def one_output(k, v):
        return jnp.sum(attention(q, k, v, segment_ids=ids, implementation=name)[0, 150])

    for grad in jax.grad(one_output, argnums=(0, 1))(k, v):
        seen = np.flatnonzero(np.abs(np.asarray(grad)).sum(axis=(0, 2, 3)))
        assert seen.min() == 100 and seen.max() == 150 and len(seen) == 51


@pytest.mark.parametrize("name", BACKENDS)
def test_another_document_leaves_outputs_and_gradients_bit_unchanged(name):
    q, k, v, dout = make(4, T=300)
    ids = packed(2, 300, [130, 170])
    other = [x.at[:, 130:].multiply(3.0) for x in (q, k, v)]
    a = attention(q, k, v, segment_ids=ids, implementation=name)
    b = attention(*other, segment_ids=ids, implementation=name)
    np.testing.assert_array_equal(a[:, :130], b[:, :130])
    assert not np.array_equal(a[:, 130:], b[:, 130:])
    for x, y in zip(grads_of(name, q, k, v, dout, segment_ids=ids),
                    grads_of(name, *other, dout, segment_ids=ids)):
        np.testing.assert_array_equal(x[:, :130], y[:, :130])


@pytest.mark.parametrize("name", list(IMPLEMENTATIONS))
def test_padding_gives_zeros_and_no_nan(name):
    q, k, v, dout = make(5, T=20)
    ids = jnp.zeros((2, 20), jnp.int32)
    np.testing.assert_array_equal(attention(q, k, v, segment_ids=ids, implementation=name),
                                  np.zeros(q.shape))
    for grad in grads_of(name, q, k, v, dout, segment_ids=ids):
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


@pytest.mark.parametrize("name", list(IMPLEMENTATIONS))
def test_fewer_queries_than_keys_are_the_last_ones_or_where_told(name):
    q, k, v, _ = make(6, T=30)
    whole = attention(q, k, v, implementation=name)
    np.testing.assert_allclose(attention(q[:, -5:], k, v, implementation=name), whole[:, -5:],
                               atol=1e-6)
    at = jnp.tile(jnp.asarray([[3, 17]], jnp.int32), (2, 1))
    some = attention(q[:, at[0]], k, v, positions=at, implementation=name)
    np.testing.assert_allclose(some, whole[:, at[0]], atol=1e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_transforms_change_nothing(name):
    q, k, v, dout = make(7, T=140)
    plain = grads_of(name, q, k, v, dout, window=50)

    def scan_over_windows(q, k, v):
        """As in a model whose layers have windows of their own: the window is traced."""
        def body(total, window):
            out = attention(q, k, v, window=window, implementation=name)
            return total + jnp.sum(out * dout), None
        return jax.lax.scan(jax.checkpoint(body), jnp.float32(0), jnp.asarray([50, 50]))[0] / 2

    for a, b in zip(plain, jax.jit(jax.grad(scan_over_windows, argnums=(0, 1, 2)))(q, k, v)):
        np.testing.assert_allclose(a, b, atol=2e-5)
    mapped = jax.vmap(functools.partial(attention, implementation=name))(q[None], k[None], v[None])
    np.testing.assert_allclose(mapped[0], attention(q, k, v, implementation=name), atol=1e-6)


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
