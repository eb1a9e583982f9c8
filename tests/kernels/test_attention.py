"""The public attention op: its definition, query positions, refusals; the XLA backend."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from qwen_jax.errors import KernelError
from qwen_jax.kernels import mask, tiles, xla
from qwen_jax.kernels.attention import attention, choose
from qwen_jax.kernels.backend import Call
from qwen_jax.kernels.platform import Target, interpret_kernels, target_of
from qwen_jax.kernels.validation import Case, error_ratios
from tests.helpers.kernel_validation import (  # noqa: F401
    KernelValidation,
    masks,
    pytest_generate_tests,
    with_gradients,
)

ANYWHERE = ("reference", "xla")


def make(seed, B=2, T=40, N=4, K=2, H=16, S=None, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = [(B, T, N, H), (B, S or T, K, H), (B, S or T, K, H), (B, T, N, H)]
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes)


# One program each, not one per operation.
compiled = jax.jit(attention, static_argnames=("window", "scale", "implementation"))


def packed(B, T, lengths, padding=0):
    """Returns segment ids of documents of repeated `lengths`, then padding, int32 [B, T]."""
    ids, i = [], 1
    while len(ids) < T - padding:
        ids += [i] * lengths[(i - 1) % len(lengths)]
        i += 1
    ids = ids[: T - padding] + [0] * padding
    return np.tile(np.asarray(ids, np.int32)[None], (B, 1))


def naive(q, k, v, segment_ids=None, window=None, scale=None):
    """Computes one query at a time in float64 numpy, independently of every backend."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(T):
            at = t + S - T
            seen = [
                s
                for s in range(at + 1)
                if (segment_ids is None or (segment_ids[b, s] == segment_ids[b, t] != 0))
                and (window is None or at - s < window)
            ]
            if not seen:
                continue
            for n in range(N):
                scores = k[b, seen, n // (N // K)] @ q[b, t, n] * (scale or H**-0.5)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights @ v[b, seen, n // (N // K)] / weights.sum()
    return out


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 1},
        {"window": 7},
        {"scale": 0.3},
        {"segments": [3, 1, 9]},
        {"segments": [5], "padding": 6, "window": 3},
    ],
)
def test_attention_equals_a_naive_loop(name, options):
    q, k, v, _ = make(0, T=23)
    options = dict(options)
    lengths, padding = options.pop("segments", None), options.pop("padding", 0)
    ids = None if lengths is None else packed(2, 23, lengths, padding)
    out = compiled(q, k, v, segment_ids=ids, implementation=name, **options)
    np.testing.assert_allclose(out, naive(q, k, v, ids, **options), atol=3e-6)


@pytest.mark.parametrize("name", ANYWHERE)
def test_attention_positions_default_to_the_last_keys(name):
    q, k, v, _ = map(np.asarray, make(6, T=30))
    full = np.asarray(compiled(q, k, v, implementation=name))
    np.testing.assert_allclose(
        compiled(q[:, -5:], k, v, implementation=name), full[:, -5:], atol=1e-6
    )
    at = np.tile(np.asarray([[3, 17]], np.int32), (2, 1))
    some = compiled(q[:, at[0]], k, v, positions=at, implementation=name)
    np.testing.assert_allclose(some, full[:, at[0]], atol=1e-6)


class TestXla(KernelValidation):
    name = "xla"
    H = 16
    # Every length and mask compiles a program: bfloat16 runs only the length at a tile boundary.
    grid = [
        Case(T=T, N=4, K=2, H=16, dtype=dtype, **mask)
        for dtype, lengths in (("float32", (1, 7, 128, 129, 300)), ("bfloat16", (129,)))
        for T in lengths
        for mask in masks(T).values()
    ]
    quick = (0, 9, 12, 22, 28, 34)  # every length, and every mask once (window=50 below)


@pytest.mark.parametrize(
    "bug",
    [pytest.param("a query misses its first key", marks=pytest.mark.slow), "a tile is dropped"],
)
def test_error_ratios_detect_a_planted_xla_bug(monkeypatch, bug):
    if bug == "a tile is dropped":
        good_tiles = xla._tiles

        def bad_tiles(*args):
            first, end = good_tiles(*args)
            return first, end - 1

        monkeypatch.setattr(xla, "_tiles", bad_tiles)
    else:
        good_key = mask.first_key
        monkeypatch.setattr(mask, "first_key", lambda *args, **how: good_key(*args, **how) + 1)
    # Lengths of no other case: jit would reuse a program traced without the bug.
    T = 151 if bug == "a tile is dropped" else 152
    found = error_ratios(Case(T=T, N=1, K=1, H=16, dtype="float32", window=40), "xla")
    assert all(not ratio <= 1 for ratio in found.values()), found


@pytest.mark.slow
class TestXlaLong(KernelValidation):
    """Chunks of 256, and groups of a batch that are computed one after another."""

    name = "xla"
    T = 600
    grid = [
        Case(T=T, B=B, N=8, K=2, H=H, dtype=dtype, **mask)
        for T, B, H in ((1000, 1, 128), (2048, 2, 64))
        for dtype in KernelValidation.dtypes
        for mask in masks(T).values()
    ]


def test_xla_groups_of_a_batch_are_independent(monkeypatch):
    """Groups of one sequence, each with its own tiles to skip, as for long sequences on a CPU."""
    monkeypatch.setattr(tiles, "lookup", lambda *args, **kwargs: {"query": 16, "key": 8})
    sizes = xla._Sizes.of(jnp.asarray(np.zeros((3, 40, 4096, 2), np.float32)), 40, 0.5)
    assert (sizes.R, sizes.C, sizes.W) == (1, 16, 8)
    monkeypatch.setattr(xla._Sizes, "of", lambda q, S, scale: xla._Sizes(1, 16, 8, scale))
    q, k, v, dout = make(3, B=3)
    ids = jnp.asarray([[1] * 40, [1] * 20 + [2] * 20, [1] * 3 + [0] * 37], jnp.int32)
    got = with_gradients(
        functools.partial(attention, segment_ids=ids, implementation="xla"), q, k, v, dout
    )
    expected = with_gradients(
        functools.partial(attention, segment_ids=ids, implementation="reference"), q, k, v, dout
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_xla_does_not_read_invisible_tiles():
    """NaN in a skipped tile would reach the sums if it were read: 0 x NaN is NaN."""
    q, k, v, dout = map(np.array, make(4, B=1, T=512, N=1, K=1, H=16))
    ids = np.repeat(np.asarray([[1, 2]], np.int32), 256, axis=1)
    k[:, :256] = v[:, :256] = np.nan
    found = with_gradients(
        functools.partial(attention, segment_ids=ids, implementation="xla"), q, k, v, dout
    )
    for array in found:
        assert np.all(np.isfinite(np.asarray(array)[:, 256:]))
    windowed = with_gradients(
        functools.partial(attention, window=100, implementation="xla"), q, k, v, dout
    )
    for array in windowed:
        assert np.all(np.isfinite(np.asarray(array)[:, 384:]))


def test_xla_memory_is_linear_in_length():
    def temp_bytes(T):
        shape = jax.ShapeDtypeStruct((1, T, 2, 64), jnp.float32)
        grad = jax.jit(
            jax.grad(lambda *a: jnp.sum(attention(*a, implementation="xla")), argnums=(0, 1, 2))
        )
        return grad.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    short, long = temp_bytes(2048), temp_bytes(8192)
    assert long < 5 * short
    assert long < 2 * 8192 * 8192 * 4 / 2  # half of a float32 [T, T] array of scores


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": (2, 40, 3, 16)}, "3 key-value heads do not divide 4 heads"),
        ({"k": (2, 40, 0, 16)}, "empty"),
        ({"q": (2, 0, 4, 16)}, "empty"),
        ({"k": (2, 40, 2, 8)}, "head sizes differ"),
        ({"q": (40, 4, 16)}, "4 dimensions"),
        ({"q": (2, 50, 4, 16)}, "last T of S"),
    ],
)
def test_attention_refuses_mismatched_shapes(change, message):
    q, k, v, _ = make(8)
    arrays = {"q": q, "k": k, "v": v} | {n: jnp.zeros(s) for n, s in change.items()}
    if "k" in change:
        arrays["v"] = arrays["k"]
    refused(message, arrays["q"], arrays["k"], arrays["v"])


def test_attention_refuses_bad_values_before_compilation():
    """eval_shape compiles nothing, so a refusal under it is before compilation."""
    q, k, v, _ = make(9)
    ids = jnp.asarray([[1, 2] * 20] * 2, jnp.int32)
    for options, message in (
        ({"window": 0}, "window=0 hides every token"),
        ({"window": jnp.int32(-3)}, "window=-3 hides every token"),
        ({"window": 2.5}, "not a single integer"),
        ({"window": jnp.ones((2,), jnp.int32)}, "not a single integer"),
        ({"segment_ids": ids}, "sequence 0 are not contiguous"),
        ({"segment_ids": jnp.ones((2, 40), jnp.float32)}, "int32"),
        ({"segment_ids": jnp.ones((2, 39), jnp.int32)}, "int32"),
        ({"implementation": "xxla"}, "did you mean 'xla'"),
    ):
        refused(message, q, k, v, **options)
    refused("dtypes differ.*bfloat16", q, k.astype(jnp.bfloat16), v)
    for position in (40, -1):  # a query before the first key sees none
        refused(
            "positions must be in 0..39",
            q[:, :1],
            k,
            v,
            positions=jnp.full((2, 1), position, jnp.int32),
        )
    refused("as many queries as keys", q[:, :1], k, v, segment_ids=jnp.ones((2, 1), jnp.int32))


def refused(message, *arrays, **options):
    """Expects `attention` to raise while it is traced, with `where` and `fix`."""
    with pytest.raises(KernelError, match=message) as caught:
        jax.eval_shape(functools.partial(attention, **options), *arrays)
    assert caught.value.where.startswith("attention") and caught.value.fix


@pytest.fixture
def stand_ins(monkeypatch):
    """Replaces the kernels of other devices: calls are recorded, nothing is compiled."""
    seen = []

    def module(platform, reason=None):
        def attend(q, k, v, **options):
            seen.append((platform, target_of(q)))
            return q

        return types.SimpleNamespace(
            PLATFORM=platform, refuse=lambda call: reason, attention=attend
        )

    monkeypatch.setitem(sys.modules, "qwen_jax.kernels.tpu.backend", module("tpu"))
    for name in ("backend", "deterministic"):
        monkeypatch.setitem(
            sys.modules, f"qwen_jax.kernels.hopper.{name}", module("gpu", "requires jax 0.11")
        )
    return seen


def call_for(platform, kind, **changes):
    return Call(
        **{
            "target": Target(platform, kind),
            "B": 1,
            "T": 64,
            "S": 64,
            "N": 2,
            "K": 1,
            "H": 64,
            "dtype": jnp.dtype("bfloat16"),
            "segments": False,
            "window": None,
        }
        | changes
    )


def test_attention_refuses_an_unavailable_backend_with_all_reasons(stand_ins):
    q, k, v, _ = make(10)
    with pytest.raises(KernelError) as caught:
        attention(q, k, v, implementation="tpu")
    what = caught.value.what
    assert "tpu: runs on a TPU, but this call is for cpu" in what and "interpret_kernels" in what
    assert "xla: can run it" in what and "hopper: runs on a GPU" in what
    assert caught.value.where == "attention(implementation='tpu') on cpu"
    assert caught.value.fix == "choose a backend that can run it, or omit `implementation`."
    with interpret_kernels():
        assert attention(q, k, v, implementation="tpu") is q
    assert stand_ins == [("tpu", Target("cpu", "cpu"))]


def test_choose_takes_the_best_backend_that_does_not_refuse(stand_ins):
    h100 = ("gpu", "NVIDIA H100")
    assert choose(call_for("tpu", "TPU v5"))[0] == "tpu"
    assert choose(call_for(*h100))[0] == "cudnn"  # hopper refuses, see stand_ins
    assert choose(call_for(*h100, segments=True))[0] == "xla"
    assert choose(call_for("cpu", "cpu"))[0] == "xla"
    for changes, reason in (
        ({"H": 256}, "head sizes that are multiples of 8 up to 128, not 256"),
        ({"segments": True}, "not support packed documents"),
        ({"dtype": jnp.dtype("float32")}, "not float32"),
        ({"window": "traced"}, "known at compile time"),
        ({"T": 8}, "as many queries as keys"),
    ):
        with pytest.raises(KernelError, match=f"cudnn: [^;]*{reason}") as caught:
            choose(call_for(*h100, **changes), "cudnn")
        assert "hopper: requires jax 0.11" in caught.value.what


def test_target_of_a_program_lowered_for_a_tpu_on_a_cpu(stand_ins, monkeypatch):
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu: make test-compile")
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        monkeypatch.setenv(name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = jax.sharding.Mesh(topology.devices, ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    q, k, v = (
        jax.ShapeDtypeStruct((4, 8, n, 64), jnp.bfloat16, sharding=sharding) for n in (2, 1, 1)
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(attention).trace(q, k, v)
    assert [(name, seen.kind) for name, seen in stand_ins] == [("tpu", "TPU v5 lite")]
    jax.jit(lambda *arrays: attention(*arrays)).trace(q, k, v)  # the mesh of the arrays suffices
    assert stand_ins[1] == stand_ins[0]
