"""The TPU kernels, interpreted on the CPU: numerics, races, planted bugs, compilation."""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh

from qwen_jax import sizes
from qwen_jax.config import MeshConfig
from qwen_jax.errors import KernelError
from qwen_jax.kernels import tiles
from qwen_jax.kernels.attention import attention, call_of
from qwen_jax.kernels.platform import interpret_kernels
from qwen_jax.kernels.tpu import backend as tpu
from qwen_jax.kernels.validation import Case, error_ratios
from qwen_jax.model.attention import partitioned_attention
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.parallel.sharding import use_layout
from tests.helpers.kernel_validation import (  # noqa: F401
    KernelValidation,
    masks,
    pytest_generate_tests,
    with_gradients,
)

# Small: short sequences have many tiles, tiles of two parts, and dq in more than one chunk.
SMALL = {
    "tpu_forward": {"query": 128, "key": 256, "compute": 128, "masked": 256},
    "tpu_backward": {"query": 128, "key": 256, "compute": 128, "chunk": 256},
}


class TestTpu(KernelValidation):
    name = "tpu"
    grid = [
        Case(T=1),
        Case(T=7, H=48, **masks(7)["packed, window, padding"]),
        *[
            Case(T=129, dtype="float32", **masks(129)[name])
            for name in ("packed", "single tokens", "padded")
        ],
        Case(T=512, N=2, K=1, dtype="float32"),  # fully visible tiles
        Case(T=128, B=2, N=2, K=2, H=128, **masks(128)["window"]),
        Case(T=700, N=4, K=1, **masks(700)["packed, window, padding"]),
    ]
    quick = (0, 7)

    @contextlib.contextmanager
    def running(self):
        with interpret_kernels(True), tiles.override(**SMALL):
            yield

    def test_attention_masks_each_sequence_of_a_batch_separately(self):
        """Tile bounds are those of each sequence, not of the first one."""
        arrays, _ = self.arrays(B=3, T=512)
        ids = np.zeros((3, 512), np.int32)
        ids[0], ids[1, :150], ids[1, 150:], ids[2, :20] = 1, 1, 2, 1

        def run(arrays, ids):
            found = self.outcome(tuple(map(jnp.asarray, arrays)), {"segment_ids": jnp.asarray(ids)})
            return tuple(map(np.asarray, found))

        together = run(arrays, ids)
        for i in range(3):
            q, k, v, dout, same = (np.repeat(np.asarray(x)[[i]], 3, axis=0) for x in (*arrays, ids))
            alike = run((q, k, v, dout), same)
            for a, b in zip(together, alike, strict=True):
                np.testing.assert_array_equal(a[i], b[0])

    @pytest.mark.parametrize(
        "changed", [pytest.param("pad_mask", marks=pytest.mark.slow), "bounds"]
    )
    def test_error_ratios_detect_a_planted_tpu_bug(self, monkeypatch, changed):
        if changed == "pad_mask":  # each query misses its first key
            good_mask = tpu.pad_mask

            def bad(k_start, q_end, tiling):
                return good_mask(k_start + 1, q_end, tiling)
        else:  # a tile is dropped
            good_bounds = tpu.bounds

            def bad(k_start, q_end, tiling):
                good = good_bounds(k_start, q_end, tiling)
                return dataclasses.replace(
                    good, last_key=good.last_key - 1, last_query=good.last_query - 1
                )

        case = Case(T=300 if changed == "bounds" else 301, N=1, K=1)  # a separate program each
        monkeypatch.setattr(tpu, changed, bad)
        found = error_ratios(case, "tpu")
        assert all(not ratio <= 1 for ratio in found.values()), found


class TestFullGridAtShippedTiles(KernelValidation):
    name = "tpu"
    grid = [
        Case(T=T, N=4, K=K, H=H, dtype=dtype, **mask)
        for T, H, dtype, K in itertools.product(
            (1, 7, 128, 129, 1000, 2048), (64, 128), KernelValidation.dtypes, (1, 2, 4)
        )
        for mask in masks(T).values()
    ]
    pytestmark = pytest.mark.slow

    @contextlib.contextmanager
    def running(self):
        with interpret_kernels(True):
            yield


@contextlib.contextmanager
def simulated(**options):
    """Simulates the memories, copies and both cores of a TPU; fails on a race.

    Memory that was never written holds NaN.
    """
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, **options)
    try:
        with (
            interpret_kernels(params),
            tiles.override(
                tpu_forward={"query": 128, "key": 128, "compute": 128},
                tpu_backward={"query": 128, "key": 128, "compute": 128, "chunk": 256},
            ),
        ):
            yield
        assert not interpreter.races.races_found
    finally:
        interpreter.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize(
    "dtype, seed", [("bfloat16", 1), pytest.param("float32", 2, marks=pytest.mark.slow)]
)
def test_attention_has_no_races_in_any_order_of_parallel_axes(dtype, seed):
    case = Case(T=300, N=2, K=1, dtype=dtype, documents=(150, 130), window=140)
    with simulated(random_seed=seed):
        found = error_ratios(case, "tpu")
    assert all(ratio <= 1 for ratio in found.values()), found


@pytest.mark.slow
def test_simulated_detects_an_axis_that_is_not_parallel(monkeypatch):
    """Key tiles run in any order on two cores, so sums carried between them are lost."""
    good = pltpu.CompilerParams

    def bad(dimension_semantics, **options):
        return good(dimension_semantics=("parallel",) * len(dimension_semantics), **options)

    monkeypatch.setattr(pltpu, "CompilerParams", bad)
    case = Case(T=260, N=1, K=1)
    with pytest.raises(AssertionError), simulated(random_seed=1):
        assert all(ratio <= 1 for ratio in error_ratios(case, "tpu").values())


@pytest.mark.parametrize(
    "kv_heads, shape",
    [
        (2, (1, 2, 2, 2)),
        pytest.param(1, (2, 2, 2, 1), marks=pytest.mark.slow),
        pytest.param(4, (1, 1, 4, 2), marks=pytest.mark.slow),
    ],
)
def test_partitioned_attention_is_equal_on_a_mesh(kv_heads, shape):
    case = Case(T=200, B=4, N=4, K=kv_heads, dtype="float32", documents=(90, 70))
    q, k, v, dout = case.arrays()
    ids = case.options()["segment_ids"]

    def attend(q, k, v):
        return partitioned_attention(
            q, k, v, segment_ids=ids, window=jnp.int32(64), implementation="tpu"
        )

    with interpret_kernels(True), tiles.override(**SMALL):
        expected = with_gradients(attend, q, k, v, dout)
        with use_layout(make_mesh(MeshConfig(*shape))):
            got = with_gradients(attend, q, k, v, dout)
    for a, b in zip(expected, got, strict=True):
        # The same matmuls on every device; XLA may sum in another order.
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(a).max())


def test_refuse_gives_the_reason():
    q, k, _, _ = Case(T=16, N=2, K=2).arrays()
    call = call_of(q, k, segment_ids=None, window=None)
    assert tpu.refuse(call) is None
    for change, reason in (
        ({"dtype": jnp.dtype("float16")}, "bfloat16 and float32, not float16"),
        ({"T": 1}, "as many queries as keys"),
        ({"N": 256, "K": 2}, "up to 32 query heads"),
        ({"H": 130}, "head sizes up to 128, not 130"),
    ):
        assert reason in tpu.refuse(dataclasses.replace(call, **change))
    q, k, v, _ = Case(T=16, H=136).arrays()
    with interpret_kernels(), pytest.raises(KernelError, match="not 136.*xla: can run") as caught:
        jax.eval_shape(functools.partial(attention, implementation="tpu"), q, k, v)
    assert "implementation='tpu'" in caught.value.where and caught.value.fix


def shapes(config, T):
    def of(heads):
        return jax.ShapeDtypeStruct((1, T, heads, config.head_dim), jnp.bfloat16)

    return of(config.num_heads), of(config.kv_heads), of(config.kv_heads)


@pytest.mark.parametrize("size", ["1.8b", "7b", "14b"])
@pytest.mark.parametrize("T", [2048, 8192])
def test_attention_of_every_size_lowers_for_a_tpu_on_a_cpu(size, T):
    device = AbstractDevice("TPU v5", 1, "tpu")

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v).astype(jnp.float32))

    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        lowered = (
            jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            .trace(*shapes(sizes.by_name(size), T))
            .lower(lowering_platforms=("tpu",))
        )
    text = lowered.as_text()
    assert text.count("tpu_custom_call") == 2, "the forward and the fused backward kernel"
    assert f"{T}x{T}" not in text


COMPILE = """
import json
from benchmarks.aot import tpu_aot
case = tpu_aot.Shape(T=2048, N=2, K=1, H=64)
tpu_aot.prepare()
print(json.dumps({kind: tpu_aot.compile_ours(kind, case, ("gradient",))
                  for kind in tpu_aot.TOPOLOGIES}))
"""


@pytest.fixture(scope="module")
def compiled():
    """Compiles both kernels for each device kind, in a separate process.

    A process that has loaded libtpu sees more devices than the CPU.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("compiling for a TPU needs libtpu: make test-compile")
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_compile_ours_succeeds_without_hardware(compiled, kind):
    assert compiled[kind]["ok"], compiled[kind]
