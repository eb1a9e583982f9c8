"""The machine code of the Hopper kernels, compiled without a GPU."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks.aot.hopper_aot import missing

ROOT = pathlib.Path(__file__).resolve().parents[3]
SHARED_BYTES = 227 * 1024  # per block on Hopper

if jax.version.__version_info__ < (0, 11):
    pytest.skip("the Hopper kernels need jax 0.11 or newer", allow_module_level=True)
if missing():
    pytest.skip(
        f"compiling for a GPU needs {missing()}: make test-compile", allow_module_level=True
    )


def compiled(*arguments: str) -> list[dict]:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.aot.hopper_aot", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])["kernels"]


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, int], dict]:
    """Compiled kernels by name and head size; grouped heads at 128."""
    rows = compiled("--shapes", "[[128, 8, 2], [64, 8, 8]]")
    return {(row["kernel"], row["H"]): row for row in rows}


@pytest.mark.parametrize("H", [64, 128])
def test_forward_sass(kernels, H):
    row = kernels["hopper_forward", H]
    assert set(row["hgmma"]) == {128: {"64x128x16"}, 64: {"64x128x16", "64x64x16"}}[H]
    assert row["utmaldg"] > 0 and row["utmastg"] > 0
    assert row["spilled_bytes"] == 0
    assert row["consumer_registers"] == {128: 240, 64: 160}[H]
    assert row["shared_bytes"] < SHARED_BYTES
    assert not row["serialized"]


@pytest.mark.parametrize("H, loops", [(128, 2), (64, 3)])
def test_forward_softmax_overlaps_the_matmul_in_every_loop(kernels, H, loops):
    """Counts 64 exponentials per thread for 64 x 128 scores, and two for its maxima, in each loop.

    The loops are the unmasked one, the masked one, and at head size 64 that of the diagonal.
    """
    row = kernels["hopper_forward", H]
    assert row["waits_in_flight"] == loops
    assert row["exp2_under_matmul"] >= 64 * loops


@pytest.mark.parametrize("H", [64, 128])
def test_backward_sass(kernels, H):
    row = kernels["attention_backward", H]
    assert row["hgmma"] and row["utmaldg"] > 0 and row["utmastg"] > 0
    assert row["utmaredg"] > 0  # dQ by TMA reductions
    # Stores and loads per thread, in a kernel of some 3,000 instructions.
    assert row["spilled_bytes"] <= {128: 64, 64: 320}[H]
    assert row["consumer_registers"] == 240
    assert row["shared_bytes"] < SHARED_BYTES
    assert row["waits_in_flight"] > 0 and not row["serialized"]


def test_attention_compiles_under_scan_remat_and_vmap():
    """The interpreter cannot run these: remat refuses its callbacks."""
    code = """
import tempfile
from benchmarks.aot import hopper_aot
hopper_aot.prepare(tempfile.mkdtemp())
import jax
import jax.numpy as jnp
from qwen_jax.kernels.attention import attention

def layers(q, k, v, ids):
    def body(x, window):
        return x + attention(q + x, k, v, segment_ids=ids, window=window), None
    x, _ = jax.lax.scan(jax.checkpoint(body), jnp.zeros_like(q), jnp.asarray([50, 90]))
    return jnp.sum(x.astype(jnp.float32))

mesh, argument = hopper_aot.target_mesh()
q, kv = argument((3, 1, 256, 2, 128)), argument((3, 1, 256, 1, 128))
with jax.sharding.use_abstract_mesh(mesh):
    gradient = jax.vmap(jax.grad(layers, argnums=(0, 1, 2)))
    lowered = jax.jit(gradient).lower(q, kv, kv, argument((3, 1, 256), jnp.int32))
print("hopper_forward" in lowered.compile().as_text())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert run.stdout.splitlines()[-1:] == ["True"], run.stderr[-2000:]
