"""The Hopper backend in the interpreter: numerics, the forward kernel, planted bugs."""

import functools
import inspect
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_jax.errors import KernelError
from qwen_jax.kernels import mask, validation
from qwen_jax.kernels.attention import attention, choose
from qwen_jax.kernels.backend import Call
from qwen_jax.kernels.hopper import backend as hopper
from qwen_jax.kernels.platform import Target, interpret_kernels
from qwen_jax.kernels.reference import visible
from qwen_jax.kernels.tiles import override
from qwen_jax.kernels.validation import Case, plain, repeated
from tests.helpers.kernel_validation import (  # noqa: F401
    KernelValidation,
    masks,
    pytest_generate_tests,
    with_gradients,
)

HOPPER = Target("gpu", "NVIDIA H200")
OLD = jax.version.__version_info__ < (0, 11)
needs_mosaic = pytest.mark.skipif(OLD, reason="the Hopper kernels need jax 0.11 or newer")
if not OLD:
    from qwen_jax.kernels.hopper import forward as hopper_forward
    from qwen_jax.kernels.hopper import ops as hopper_ops
    from tests.helpers.hopper_interpreter import RaceFound, interpreted


def call(**changes) -> Call:
    return Call(
        **{
            "target": HOPPER,
            "B": 1,
            "T": 256,
            "S": 256,
            "N": 4,
            "K": 2,
            "H": 128,
            "dtype": jnp.dtype("bfloat16"),
            "segments": True,
            "window": "traced",
        }
        | changes
    )


def test_refuse_names_the_required_jax_version(monkeypatch):
    monkeypatch.setattr(jax.version, "__version_info__", (0, 10, 2))
    assert "requires jax 0.11 or newer" in hopper.refuse(call())


@needs_mosaic
@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, None),
        ({"H": 64, "dtype": jnp.dtype("float16"), "window": None}, None),
        ({"dtype": jnp.dtype("float32")}, "TF32"),
        ({"dtype": jnp.dtype("float64")}, "not float64"),
        ({"H": 96}, "not 96"),
        ({"T": 1}, "full sequences"),
        ({"target": Target("gpu", "NVIDIA A100-SXM4-80GB")}, "A100.*use cudnn or xla"),
        ({"target": Target("gpu", "NVIDIA B200")}, "B200"),
        ({"target": Target("gpu", "NVIDIA H2000")}, "H2000"),
    ],
)
def test_refuse_gives_a_reason(changes, reason):
    refusal = hopper.refuse(call(**changes))
    if reason is None:
        assert refusal is None
    else:
        assert re.search(reason, refusal)


@needs_mosaic
def test_attention_refuses_an_unsupported_head_size_before_compilation():
    q, k, v, _ = Case(T=16, H=96).arrays()
    with interpret_kernels(), pytest.raises(KernelError, match="not 96.*xla: can run it") as caught:
        jax.eval_shape(functools.partial(attention, implementation="hopper"), q, k, v)
    assert "implementation='hopper'" in caught.value.where and caught.value.fix


@needs_mosaic
@pytest.mark.parametrize(
    "kind",
    [
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe",
        "NVIDIA H200",
        "NVIDIA H800",
        "NVIDIA H20-3e",
        "NVIDIA GH200 480GB",
    ],
)
def test_choose_prefers_hopper_on_every_hopper_gpu(kind):
    assert choose(call(target=Target("gpu", kind)))[0] == "hopper"


def test_choose_takes_another_backend_on_other_gpus():
    assert (
        choose(call(target=Target("gpu", "NVIDIA A100-SXM4-80GB"), segments=False, window=None))[0]
        == "cudnn"
    )


@functools.partial(jax.jit, static_argnums=0)
def bounds(case: Case):
    """Returns k_start and q_end."""
    ids = case.options().get("segment_ids")
    start = mask.first_key(
        case.B, case.T, case.T, segment_ids=ids, positions=None, window=case.window
    )
    return start, mask.last_query(case.B, case.T, segment_ids=ids, window=case.window)


def arguments(case: Case):
    """Returns q, k, v, k_start, q_end."""
    return *case.arrays()[:3], *bounds(case)


@functools.partial(jax.jit, static_argnums=0)
def by_definition(case: Case, q, k, v):
    """Returns out and the base-2 lse in float32, and out by plain JAX in the case's dtype."""
    near = plain(q, k, v, **case.options())
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, case.N // case.K, axis=2) for x in (k, v))
    seen = visible(case.T, case.T, case.options().get("segment_ids"), None, case.window)
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * jnp.float32(case.H**-0.5)
    seen = jnp.broadcast_to(seen[:, None], scores.shape)
    lse = jax.nn.logsumexp(scores, axis=-1, where=seen)
    out = jnp.einsum("BNTS,BSNH->BTNH", jnp.where(seen, jnp.exp(scores - lse[..., None]), 0.0), v)
    lse = jnp.where(jnp.isfinite(lse), lse * hopper_ops.LOG2E, hopper_ops.NOTHING_VISIBLE)
    return out, lse, near


def errors(case: Case, *, module=None, detect_races: bool = False, scale: float | None = None):
    """Returns the error of out over its tolerance, and the absolute error of lse."""
    forward = functools.partial((module or hopper_forward).forward, scale=case.H**-0.5)
    q, k, v, start, end = arguments(case)
    with interpreted(detect_races=detect_races):
        out, lse = jax.jit(forward)(q, k, v, start, end)
    want, want_lse, near = by_definition(case, q, k, v)
    assert out.dtype == q.dtype and lse.shape == want_lse.shape
    have, lse, want, want_lse, near = (
        np.asarray(x, np.float32) for x in (out, lse, want, want_lse, near)
    )
    floor = 4 * float(jnp.finfo(case.dtype).eps) * np.abs(want).max() + 1e-5
    ratio = np.abs(have - want).max() / (2 * np.abs(near - want).max() + floor)
    return float(ratio), float(np.abs(lse - want_lse).max())


def check(case: Case, **how):
    ratio, lse = errors(case, **how)
    assert ratio <= 1
    assert lse < 1e-4  # float32 sums of exact products of bfloat16, up to 2^10 of them


PACKED = {"documents": repeated(330, (70, 1, 120), padding=30), "window": 100}


@needs_mosaic
@pytest.mark.parametrize(
    "given",
    [
        Case(T=330, N=1, K=1, H=128, **PACKED),
        pytest.param(Case(T=200, N=2, K=1, H=64, window=70), marks=pytest.mark.slow),
        Case(T=7, B=2, N=1, K=1, H=64, dtype="float16"),
    ],
    ids=["packed", "window", "short"],
)
def test_forward_is_accurate_and_free_of_races(given):
    check(given, detect_races=True)


@needs_mosaic
@pytest.mark.slow
@pytest.mark.parametrize("consumers", [2, 3])
@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize(
    "given",
    [
        {"T": 1},
        {"T": 128},
        {"T": 257, "N": 4},
        {"T": 512, "dtype": "float16"},
        {"T": 300, "documents": (1,) * 300},
        {"T": 300, "documents": ()},
        {"T": 400, "documents": (10, 200, 140)},
        {"T": 320, "window": 1},
        {"T": 500, "window": 130},
        {"T": 384, "documents": (128, 128, 128)},
    ],
    ids=str,
)
def test_forward_over_the_grid(given, H, consumers):
    with override(hopper_forward={"consumers": consumers}):
        check(Case(**{"N": 2, "K": 1, "H": H} | given), detect_races=True)


@needs_mosaic
@pytest.mark.parametrize("scale", [pytest.param(0.0, marks=pytest.mark.slow), -0.3])
def test_forward_with_any_scale(scale):
    case = Case(T=40, N=1, K=1, H=64)
    q, k, v, start, end = arguments(case)
    with interpreted():
        out, lse = jax.jit(functools.partial(hopper_forward.forward, scale=scale))(
            q, k, v, start, end
        )
    scores = np.einsum("tnh,snh->nts", *(np.asarray(x[0], np.float64) for x in (q, k)))[0] * scale
    weights = np.tril(np.exp(scores))
    want = (weights / weights.sum(1, keepdims=True)) @ np.asarray(v[0, :, 0], np.float64)
    # Half a unit in the last place of a bfloat16 up to 4, plus the rounding of the weights.
    np.testing.assert_allclose(np.asarray(out[0, :, 0], np.float64), want, atol=2e-2)
    np.testing.assert_allclose(lse[0, 0], np.log2(weights.sum(1)), atol=1e-4)


@needs_mosaic
@pytest.mark.parametrize("consumers", [2, 3])
def test_first_tiles_are_exact(consumers):
    T, J = 768, 128
    config = hopper_forward.LaunchConfig(
        1, T, 1, 1, 64, jnp.dtype("bfloat16"), 1.0, consumers, J, 2
    )
    for options in (
        {},
        {"window": 1},
        {"window": 70},
        {"window": 300},
        {"documents": (1,) * T},
        {"documents": ()},
        {"documents": repeated(T, (130, 7, 64), padding=75)},
        {"documents": repeated(T, (150, 1), padding=3), "window": 100},
    ):
        start = np.asarray(arguments(Case(T=T, N=1, K=1, **options))[3])
        found = np.asarray(hopper_forward.first_tiles(config, start))[0]
        for block, (first, unmasked) in enumerate(found):
            queries = np.arange(block * config.M, min(T, (block + 1) * config.M))
            queries = queries[start[0, queries] <= queries]
            if len(queries) == 0:
                assert first * J >= T
                continue
            assert first == start[0, queries].min() // J
            assert unmasked == -(-start[0, queries].max() // J)


BUGS = {
    "a query does not see itself": ("(key <= lax", "(key < lax"),
    "a query does not see the first of its keys": ("key >= lax", "key > lax"),
    "a tile is dropped": ("axis=2) // config.keys,", "axis=2) // config.keys + 1,"),
    "a masked tile is taken for an unmasked one": ("-(-jnp.max(", "(jnp.max("),
}
RACES = {
    "a stage is released while it is read": (
        "        scores = ops.read(scores_ref, in_flight=1)\n"
        "        plgpu.barrier_arrive(s.k_free.at[now])\n",
        "        plgpu.barrier_arrive(s.k_free.at[now])\n"
        "        scores = ops.read(scores_ref, in_flight=1)\n",
    ),
    "no wait for the values": (
        "        plgpu.barrier_wait(s.v_full.at[before])\n        ops.accumulate(out_ref, ",
        "        ops.accumulate(out_ref, ",
    ),
}
LATE = (
    "        new_out = ops.read(out_ref)\n",
    "        new_out = ops.read(out_ref)\n        plgpu.barrier_wait(s.v_full.at[before])\n",
)


def planted(*changes: tuple[str, str]) -> types.ModuleType:
    """Returns hopper_forward with a bug in it."""
    source = inspect.getsource(hopper_forward)
    for text, bug in changes:
        assert source.count(text) == 1, text
        source = source.replace(text, bug)
    module = types.ModuleType("planted")
    module.__dict__["__name__"] = "planted"
    exec(compile(source, "planted.py", "exec"), module.__dict__)
    return module


def first_only(names):
    """One in the default tests: each takes seconds in the interpreter."""
    return [
        pytest.param(name, marks=() if i == 0 else pytest.mark.slow) for i, name in enumerate(names)
    ]


@needs_mosaic
@pytest.mark.parametrize("name", first_only(BUGS))
def test_forward_errors_show_a_planted_bug(name):
    case = Case(T=192, N=1, K=1, H=128, window=100)
    ratio, _ = errors(case, module=planted(BUGS[name]))
    assert not ratio <= 1


@needs_mosaic
@pytest.mark.parametrize("name", first_only(RACES))
def test_forward_detects_a_planted_race(name):
    bug = (RACES[name], LATE) if "values" in name else (RACES[name],)
    with pytest.raises(RaceFound):
        errors(Case(T=512, N=1, K=1, H=128), module=planted(*bug), detect_races=True)


@needs_mosaic
@pytest.mark.slow
@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize("T", [1, 129, 400])
@pytest.mark.parametrize("name", ["causal", "window", "padded", "packed, window, padding"])
def test_check_over_the_grid(name, T, H):
    if name in masks(T):
        with interpreted(detect_races=True):
            validation.check(Case(T=T, N=2, K=1, H=H, **masks(T)[name]), "hopper")


@needs_mosaic
class TestHopper(KernelValidation):
    name = "hopper"
    dtypes = ("bfloat16", "float16")
    H, T = 64, 250
    grid = [Case(T=150, N=2, K=1, H=64, dtype="float16", **masks(150)["packed, window, padding"])]

    def running(self):
        return interpreted()

    # Each takes ten seconds or more in the interpreter: the default is one case and causality.
    @pytest.mark.slow
    def test_attention_of_a_document_is_bitwise_independent_of_others(self):
        super().test_attention_of_a_document_is_bitwise_independent_of_others()

    @pytest.mark.slow
    def test_attention_of_padding_is_zero_and_not_nan(self):
        super().test_attention_of_padding_is_zero_and_not_nan()

    @pytest.mark.slow
    def test_attention_with_a_window_of_full_length_changes_nothing(self):
        super().test_attention_with_a_window_of_full_length_changes_nothing()

    @pytest.mark.slow
    def test_attention_is_equal_under_scan_remat_and_vmap(self):
        """Without remat, which refuses the interpreter's callbacks; test_sass.py covers it."""
        (q, k, v, dout), _ = self.arrays(T=100)

        def scanned(q, k, v):
            def body(total, window):
                return total + self.attend(window=window)(q, k, v), None

            return jax.lax.scan(body, jnp.zeros(q.shape, q.dtype), jnp.asarray([50, 50]))[0]

        plain = with_gradients(self.attend(window=50), q, k, v, dout)
        mapped = with_gradients(
            jax.vmap(self.attend(window=50)), *(x[None] for x in (q, k, v, dout))
        )
        eps = float(jnp.finfo(q.dtype).eps)  # sums in another order, rounded to the dtype
        for a, b, c in zip(plain, with_gradients(scanned, q, k, v, dout), mapped, strict=True):
            a, b, c = (np.asarray(x, np.float32) for x in (a, b, c[0]))
            np.testing.assert_allclose(2 * a, b, atol=8 * eps * np.abs(b).max())
            np.testing.assert_allclose(a, c, atol=8 * eps * np.abs(a).max())
