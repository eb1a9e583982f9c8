"""Inspects the machine code of the Hopper kernels, compiled without a GPU.

    python -m benchmarks.aot.hopper_aot

Compiles the public op and its gradient for the description of an H200, then assembles and
disassembles each kernel's PTX for sm_90a. The table lists the relevant instructions (wgmma is
HGMMA, TMA is UTMALDG, UTMASTG and UTMAREDG), registers per thread, spilled bytes, shared memory,
and how many waits for matmuls leave one in flight. Masks are data, so one program runs both dense
and packed sequences.

Requires jax[cuda13] or its plugin (jax-cuda13-plugin), ptxas (CUDA toolkit) and nvdisasm
(pip install nvidia-cuda-nvdisasm), but no driver and no GPU.
"""

import argparse
import collections
import dataclasses
import datetime
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
CUDA = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
SHAPES = [  # head size, heads, key-value heads
    (128, 8, 8),
    (128, 8, 2),
    (64, 8, 8),
    (64, 8, 2),
]
B, T = 2, 2048
# The GPU description for XLA: an H200 (SXM).
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150754820096 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled kernel."""

    implementation: str
    kernel: str
    H: int
    N: int
    K: int
    hgmma: dict[str, int]  # number of instructions by shape
    utmaldg: int
    utmastg: int
    utmaredg: int
    registers: int  # per thread at kernel start; setmaxnreg redistributes them
    consumer_registers: int
    spilled_bytes: int  # by spill stores and loads
    shared_bytes: int
    waits: int  # number of waits for matmuls
    waits_in_flight: int  # number of waits that leave a matmul running
    exp2_under_matmul: int  # exponentials between such a wait and the next full wait
    serialized: bool  # whether ptxas serialized asynchronous matmuls


def tool(name: str) -> str | None:
    """Returns the path of ptxas or nvdisasm, or None if it is not installed."""
    found = shutil.which(name) or shutil.which(name, path=str(CUDA / "bin"))
    if found is None:
        for folder in sys.path:
            for path in pathlib.Path(folder).glob(f"nvidia/*/bin/{name}"):
                return str(path)
    return found


def _need(name: str) -> str:
    """Returns the path of a tool that `missing` has not reported."""
    path = tool(name)
    assert path is not None, f"{name} is missing"
    return path


def _found(pattern: str, text: str) -> str:
    """Returns the first group of the pattern's match in a tool's output."""
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} is not in: {text}"
    return match[1]


def missing() -> str | None:
    """Returns the names of missing tools for compiling without a GPU, or None."""
    lacks = [name for name in ("ptxas", "nvdisasm") if tool(name) is None]
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        lacks.append("jax's CUDA plugin")
    return ", ".join(lacks) or None


def prepare(dump: str) -> None:
    """Sets the environment of XLA and Mosaic GPU; must be called before jax is imported."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # there is no driver
    os.environ.pop("JAX_PLATFORMS", None)  # "cpu" would disable the plugin
    os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={CUDA}"
    os.environ["PATH"] += os.pathsep + str(pathlib.Path(_need("ptxas")).parent)
    os.environ |= {
        "MOSAIC_GPU_DUMP_PTX": "1",
        "MOSAIC_GPU_DUMP_RESOURCES": "1",
        "MOSAIC_GPU_DUMP_TO": dump,
    }


def target_mesh():
    """Returns a mesh of one described H200, and a function that makes abstract arguments for it."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    mesh = jax.sharding.Mesh(np.array(topology.devices).reshape(1), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def argument(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return mesh.abstract_mesh, argument


def compile_op(H: int, N: int, K: int, *, implementation: str) -> None:
    """Compiles the op's gradient for the H200; Mosaic dumps the PTX of the kernels."""
    import jax
    import jax.numpy as jnp

    from qwen_jax.kernels.attention import attention

    def gradient(q, k, v, dout, ids, window):
        out, pull = jax.vjp(
            lambda q, k, v: attention(
                q, k, v, segment_ids=ids, window=window, implementation=implementation
            ),
            q,
            k,
            v,
        )
        return out, pull(dout)

    mesh, argument = target_mesh()
    q, kv = argument((B, T, N, H)), argument((B, T, K, H))
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(gradient).lower(
            q, kv, kv, q, argument((B, T), jnp.int32), argument((), jnp.int32)
        )
    lowered.compile()


def read(ptx: pathlib.Path, implementation: str, H: int, N: int, K: int) -> Row:
    """Assembles and disassembles one kernel."""
    name = re.sub(r"_\d+$", "", ptx.stem)
    cubin = ptx.with_suffix(".cubin")
    report = subprocess.run(
        [_need("ptxas"), "-arch=sm_90a", "-v", str(ptx), "-o", str(cubin)],
        capture_output=True,
        text=True,
        check=True,
    )
    output = report.stdout + report.stderr
    sass = subprocess.run(
        [_need("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    found = collections.Counter(re.findall(r"\b(UTMA[A-Z]+)\.", sass))
    waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d+)", sass)
    resources = ptx.with_suffix(".resources.txt").read_text(encoding="utf-8")
    return Row(
        implementation=implementation,
        kernel=name,
        H=H,
        N=N,
        K=K,
        hgmma=dict(collections.Counter(re.findall(r"\bHGMMA\.(\w+)\.", sass))),
        utmaldg=found["UTMALDG"],
        utmastg=found["UTMASTG"],
        utmaredg=found["UTMAREDG"],
        registers=int(_found(r"Used (\d+) registers", output)),
        consumer_registers=max(
            (
                int(n, 16)
                for n in re.findall(r"USETMAXREG\.TRY_ALLOC\.CTAPOOL \S+ 0x([0-9a-f]+)", sass)
            ),
            default=0,
        ),
        spilled_bytes=sum(
            int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", output)
        ),
        shared_bytes=int(_found(r"smem_scratch_bytes=(\d+)", resources)),
        waits=len(waits),
        waits_in_flight=sum(n != "0" for n in waits),
        exp2_under_matmul=_exponentials_under_matmul(sass),
        serialized="wgmma" in output and "serialized" in output,
    )


def _exponentials_under_matmul(sass: str) -> int:
    """Counts, in program order, the exponentials after a wait that leaves a matmul in flight."""
    under, count = False, 0
    for wait, _ in re.findall(r"DEPBAR\.LE gsb0, 0x(\d+)|(MUFU\.EX2)", sass):
        if wait:
            under = wait != "0"
        else:
            count += under
    return count


def measure(implementation: str, shapes) -> list[Row]:
    """Compiles every kernel of the op at the given shapes; changes the process environment."""
    rows = []
    for H, N, K in shapes:
        with tempfile.TemporaryDirectory() as dump:
            prepare(dump)
            compile_op(H, N, K, implementation=implementation)
            rows += [
                read(ptx, implementation, H, N, K)
                for ptx in sorted(pathlib.Path(dump).glob("*.ptx"))
            ]
    return rows


def table(rows: list[Row]) -> str:
    """Returns the table as Markdown."""
    heads = (
        "backend",
        "kernel",
        "H",
        "heads",
        "HGMMA",
        "TMA load / store / add",
        "registers (start, consumers)",
        "spilled bytes",
        "shared memory",
        "waits, with a matmul in flight",
        "exp2 under a matmul",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        shapes = ", ".join(f"{n} x {shape}" for shape, n in sorted(row.hgmma.items()))
        cells = (
            row.implementation,
            row.kernel,
            row.H,
            f"{row.N} / {row.K}",
            shapes,
            f"{row.utmaldg} / {row.utmastg} / {row.utmaredg}",
            f"{row.registers}, {row.consumer_registers}",
            row.spilled_bytes,
            f"{row.shared_bytes:,}",
            f"{row.waits}, {row.waits_in_flight}",
            row.exp2_under_matmul,
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    import jax

    ptxas = subprocess.run(
        [_need("ptxas"), "--version"], capture_output=True, text=True, check=True
    )
    return {
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "ptxas": _found(r"V([\d.]+)", ptxas.stdout),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON and write no file")
    parser.add_argument("--shapes", help='shapes as [H, N, K], such as "[[128, 8, 2]]"')
    flags = parser.parse_args()
    if missing():
        raise SystemExit(f"{missing()} not found; see the docstring of {__file__}.")
    if flags.shapes is not None:
        rows = measure("hopper", json.loads(flags.shapes))
    else:
        rows = measure("hopper", SHAPES)
        # Omit the deterministic forward kernel, which is the same as above.
        rows += [
            row
            for row in measure("hopper_deterministic", SHAPES[::2])
            if "forward" not in row.kernel
        ]
    record = {
        "date": datetime.date.today().isoformat(),
        "target": "sm_90a",
        "B": B,
        "T": T,
        "command": "python -m benchmarks.aot.hopper_aot",
        "versions": versions(),
        "kernels": [dataclasses.asdict(row) for row in rows],
    }
    if flags.json:
        print(json.dumps(record))
        return
    (RESULTS / "hopper_aot.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    versions_ = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    text = (
        f"# Hopper kernels as compiled for sm_90a, without a GPU\n\n{record['date']}, "
        f"`{record['command']}`, {versions_}. BF16, batch {B}, {T} tokens; masks are data, so one "
        f"program runs dense and packed sequences.\n\n{table(rows)}\n"
    )
    (RESULTS / "hopper_aot.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
