"""Loading and saving in other processes: peak memory, and two processes that share a mesh."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from qwen_jax.config import ModelConfig
from qwen_jax.model.spec import param_specs
from qwen_jax.pretrained.huggingface import save_pretrained

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ModelConfig(vocab_size=32768, hidden_size=1024, num_layers=8, num_heads=8, ffn_size=4096)

MEMORY = """
import json, sys
import jax
from jax.sharding import NamedSharding, PartitionSpec
import qwen_jax.checkpoint.checkpointer
from orbax.checkpoint import v1
import tensorstore
from qwen_jax.config import MeshConfig
from qwen_jax.pretrained.huggingface import load_pretrained
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.parallel.mesh import make_mesh

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

folder, save_to = sys.argv[1:]
mesh = make_mesh(MeshConfig(fsdp=8))
jax.block_until_ready(jax.device_put(jax.numpy.ones(8), NamedSharding(mesh, PartitionSpec("fsdp"))))
open("/proc/self/clear_refs", "w").write("5")  # VmHWM from here on
before = status("VmRSS")
config, params = load_pretrained(folder, mesh=mesh)
peak = status("VmHWM") - before
shards = [shard.data.nbytes for leaf in jax.tree.leaves(params)
          for shard in leaf.addressable_shards]
print(json.dumps({"beyond": peak - sum(shards), "largest": max(shards)}))
if save_to:
    save_run(save_to, config, params)
"""

SHARED = """
import json, sys
import jax
process, port, source, target = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
from qwen_jax.config import MeshConfig
from qwen_jax.pretrained.huggingface import load_pretrained, save_pretrained
from qwen_jax.parallel.mesh import make_mesh

read = []
config, params = load_pretrained(source, mesh=make_mesh(MeshConfig(fsdp=8)), progress=read.append)
assert not params.embed.is_fully_addressable
save_pretrained(target, config, params, layout="qwen2")
print(json.dumps({"read": sum(read)}))
"""


def start(code: str, *arguments, devices: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            "JAX_PLATFORMS": "cpu",
            "PATH": "/usr/bin:/bin",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
    )


def result(process: subprocess.Popen) -> dict:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    return json.loads(out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model of 200M parameters in float32."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: rng.normal(size=spec.shape).astype(np.float32), param_specs(CONFIG)
    )
    path = tmp_path_factory.mktemp("model") / "qwen2"
    save_pretrained(path, CONFIG, params, layout="qwen2")
    return path


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_load_pretrained_needs_memory_for_the_result_and_the_largest_shard(folder, tmp_path):
    # For chunks of a few megabytes and the libraries, which is negligible for large models. A full
    # stacked weight on the host would be 134 MB.
    slack = 40 << 20
    for source, save_to in ((folder, tmp_path / "run"), (tmp_path / "run", "")):
        found = result(start(MEMORY, source, save_to, devices=8))
        assert found["largest"] == 8 * 1024 // 8 * 4096 * 4, "a stacked MLP weight"
        assert found["beyond"] <= 1.2 * found["largest"] + slack, source


@pytest.mark.slow
def test_load_pretrained_in_two_processes_reads_halves_and_saves_the_same(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        start(SHARED, number, port, folder, tmp_path / "out", devices=4) for number in range(2)
    ]
    read = [result(process)["read"] for process in processes]
    size = (folder / "model.safetensors").stat().st_size
    assert all(0.49 * size < part < 0.52 * size for part in read)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
