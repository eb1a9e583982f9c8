"""The Hopper backward kernels in the interpreter: gradients, tile bounds, planted bugs and races.

The forward pass is the definition here, so only the backward pass is tested.
"""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.version.__version_info__ < (0, 11):
    pytest.skip("the Hopper kernels need jax 0.11 or newer", allow_module_level=True)

from qwen_jax.kernels import mask  # noqa: E402
from qwen_jax.kernels.attention import attention  # noqa: E402
from qwen_jax.kernels.backend import differentiable  # noqa: E402
from qwen_jax.kernels.hopper import backward as hopper_backward
from qwen_jax.kernels.hopper import backward_dq as hopper_backward_dq
from qwen_jax.kernels.hopper import ops as hopper_ops
from qwen_jax.kernels.reference import attention as reference  # noqa: E402
from qwen_jax.kernels.tiles import override  # noqa: E402
from qwen_jax.kernels.validation import NAMES, Case, plain, repeated  # noqa: E402
from qwen_jax.kernels.validation import check as validation_check  # noqa: E402
from tests.helpers.hopper_interpreter import RaceFound, interpreted  # noqa: E402
from tests.helpers.kernel_validation import with_gradients  # noqa: E402


def forward(q, k, v, k_start, q_end, *, scale):
    """Returns out and lse by definition, in the form of the Hopper forward kernel."""
    del q_end
    T, G = q.shape[1], q.shape[2] // k.shape[2]
    q_f32, k_f32, v_f32 = (x.astype(jnp.float32) for x in (q, k, v))
    k_f32, v_f32 = jnp.repeat(k_f32, G, axis=2), jnp.repeat(v_f32, G, axis=2)
    t = jnp.arange(T)
    seen = (t[None, None, :] <= t[None, :, None]) & (t[None, None, :] >= k_start[:, :, None])
    scores = jnp.einsum("BTNH,BSNH->BNTS", q_f32, k_f32) * jnp.float32(scale)
    seen = jnp.broadcast_to(seen[:, None], scores.shape)
    lse = jax.nn.logsumexp(scores, axis=-1, where=seen)
    weights = jnp.where(seen, jnp.exp(scores - lse[..., None]), 0.0)
    out = jnp.einsum("BNTS,BSNH->BTNH", weights, v_f32).astype(q.dtype)
    lse = jnp.where(jnp.isfinite(lse), lse * hopper_ops.LOG2E, hopper_ops.NOTHING_VISIBLE)
    return out, lse.astype(jnp.float32)


def attend(case: Case, *, module=hopper_backward, deterministic: bool = False):
    """Returns attention(q, k, v) of the case, with its gradient by the kernels of `module`."""
    op = differentiable(forward, functools.partial(module.backward, deterministic=deterministic))
    options = {"segment_ids": None, "window": None} | case.options()
    return functools.partial(op, positions=None, scale=case.H**-0.5, **options)


def error_ratios(case: Case, **how) -> dict[str, float]:
    """Returns the largest error of each gradient over its tolerance: validation.error_ratios."""
    arrays, options = case.arrays(), {"segment_ids": None, "window": None} | case.options()
    got = with_gradients(attend(case, **how), *arrays)
    exact = functools.partial(reference, positions=None, scale=case.H**-0.5, **options)
    expected = with_gradients(exact, *(x.astype(jnp.float32) for x in arrays))
    rough = with_gradients(functools.partial(plain, **options), *arrays)
    result = {}
    for name, want, have, near in list(zip(NAMES, expected, got, rough, strict=True))[1:]:
        want, have, near = (np.asarray(x, np.float32) for x in (want, have, near))
        floor = 4 * float(jnp.finfo(case.dtype).eps) * np.abs(want).max() + 64 * float(
            jnp.finfo(jnp.float32).eps
        )
        result[name] = float(np.abs(have - want).max() / (2 * np.abs(near - want).max() + floor))
    return result


def check(case: Case, *, detect_races: bool = False, **how):
    with interpreted(detect_races=detect_races):
        found = error_ratios(case, **how)
    assert all(ratio <= 1 for ratio in found.values()), found


PACKED = Case(T=290, N=2, K=1, H=128, window=90, documents=repeated(290, (97, 1, 60), padding=40))


@pytest.mark.parametrize("deterministic", [False, True], ids=["fused", "deterministic"])
@pytest.mark.parametrize(
    "case",
    [
        PACKED,
        pytest.param(Case(T=129, B=2, N=2, K=2, H=64), marks=pytest.mark.slow),
        Case(T=7, N=1, K=1, H=64, dtype="float16"),
    ],
    ids=["packed", "full", "short"],
)
def test_backward_is_accurate_and_free_of_races(case, deterministic):
    check(case, detect_races=True, deterministic=deterministic)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True], ids=["fused", "deterministic"])
@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize(
    "case",
    [
        {"T": 1},
        {"T": 128},
        {"T": 257, "N": 4, "K": 1},
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
def test_backward_over_the_grid(case, H, deterministic):
    check(Case(**{"N": 2, "K": 1, "H": H} | case), detect_races=True, deterministic=deterministic)


def test_backward_of_padding_is_zero():
    case = Case(T=70, N=1, K=1, H=64, documents=())
    with interpreted():
        for array in with_gradients(attend(case), *case.arrays()):
            np.testing.assert_array_equal(array, np.zeros(array.shape))


@pytest.mark.parametrize("run", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hopper_deterministic_runs_its_own_kernel(monkeypatch, run):
    """By default it is only traced; the tests above run the kernel."""
    runs = []
    real = hopper_backward.query_gradient
    monkeypatch.setattr(
        hopper_backward,
        "query_gradient",
        lambda *args, **how: runs.append(how) or real(*args, **how),
    )
    case = Case(T=40, N=1, K=1, H=64)
    attend = functools.partial(attention, implementation="hopper_deterministic")
    with interpreted():
        if run:
            validation_check(case, "hopper_deterministic")
        else:
            jax.eval_shape(lambda q, k, v, g: jax.vjp(attend, q, k, v)[1](g), *case.arrays())
    assert runs


@pytest.mark.slow
@pytest.mark.parametrize("H, early", [(128, 0), (64, 1)])
def test_backward_is_accurate_with_and_without_early_dv(H, early):
    with override(hopper_backward={"early_dv": early}):
        check(Case(T=200, N=1, K=1, H=H), detect_races=True)


@pytest.mark.parametrize("T", [128, 640])
def test_bounds_are_exact(T):
    options = [
        {},
        {"window": 1},
        {"window": 70},
        {"window": 300},
        {"documents": (1,) * T},
        {"documents": ()},
        {"documents": repeated(T, (130, 7, 64), padding=75)},
        {"documents": repeated(T, (150, 1), padding=3), "window": 100},
    ]
    for case in (Case(T=T, **option) for option in options):
        ids, window = case.options().get("segment_ids"), case.window
        k_start = mask.first_key(1, T, T, segment_ids=ids, positions=None, window=window)
        q_end = mask.last_query(1, T, segment_ids=ids, window=window)
        t = np.arange(T)
        seen = (t[None, :] <= t[:, None]) & (t[None, :] >= np.asarray(k_start)[0][:, None])
        for tile in (64, 128):
            _bounds_hold(np.asarray(hopper_backward.bounds(q_end, tile))[0], seen.T, tile)
        # The bounds of queries are those of keys in the reversed sequence.
        found = np.asarray(hopper_backward_dq.bounds(k_start))[0]
        first, end, unmasked = found[:, :1], found[:, 1:2], found[:, :1:-1]
        backwards = T // 128 - np.concatenate([end, first, unmasked], axis=1)
        _bounds_hold(backwards[::-1], seen[::-1, ::-1], 128)


def _bounds_hold(found, seen, tile):
    """Checks bounds against a mask.

    (first, end) is the hull of the column tiles that 128 rows see. The tiles before unmasked_0
    (unmasked_1) that start after the first (last) 64 rows are those without a mask.
    """
    for j, (first, end, *unmasked) in enumerate(found):
        meets = np.flatnonzero(seen[j * 128 : (j + 1) * 128].any(axis=0)) // tile
        assert (first, end) == (meets[0], meets[-1] + 1) if len(meets) else first == end
        for row, limit in zip((j * 128, j * 128 + 64), unmasked, strict=True):
            for i in range(-(-(row + 63) // tile), seen.shape[1] // tile):
                every = seen[row : row + 64, i * tile : (i + 1) * tile].all()
                assert every == (i < limit)


BUGS = {
    "the mask is off by one": [("(at >= lax.broadcast_in_dim", "(at > lax.broadcast_in_dim")],
    "a tile is dropped": [("axis=-1) // tile + 1", "axis=-1) // tile")],
    "a masked tile is taken for an unmasked one": [
        ("needed=(i * Q < key + 63)", "needed=(i * Q < key)")
    ],
}
RACES = {
    "no wait for the other warpgroup's dS": [
        ("    plgpu.barrier_arrive(memory.ds_full)\n    plgpu.barrier_wait(memory.ds_full)\n", "")
    ],
    "a stage is released while it is read": [
        (
            "        @pl.when(s > 0)\n        def _():\n"
            "            plgpu.barrier_arrive(memory.free.at[_stage(s - 1)])\n",
            "        plgpu.barrier_arrive(memory.free.at[stage])\n",
        ),
        ("@pl.when(steps > 0)", "@pl.when(steps < 0)"),
    ],
}


def planted(changes: list[tuple[str, str]]) -> types.ModuleType:
    """Returns hopper_backward with a bug in it."""
    source = inspect.getsource(hopper_backward)
    for text, bug in changes:
        assert source.count(text) == 1
        source = source.replace(text, bug)
    module = types.ModuleType("planted")
    exec(compile(source, "planted.py", "exec"), module.__dict__)
    return module


def first_only(names):
    """One in the default tests: each takes seconds in the interpreter."""
    return [
        pytest.param(name, marks=() if i == 0 else pytest.mark.slow) for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("name", first_only(BUGS))
def test_backward_errors_show_a_planted_bug(name):
    with interpreted():
        found = error_ratios(Case(T=192, N=1, K=1, H=128, window=100), module=planted(BUGS[name]))
    assert not all(ratio <= 1 for ratio in found.values())


@pytest.mark.parametrize("name", first_only(RACES))
def test_backward_detects_a_planted_race(name):
    case = Case(T=256, N=1, K=1, H=128)
    with pytest.raises(RaceFound), interpreted(detect_races=True):
        with_gradients(attend(case, module=planted(RACES[name])), *case.arrays())
