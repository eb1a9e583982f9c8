"""Compiles the TPU attention kernels for every kind of TPU on a machine without one.

Reports whether the kernels compile, the compile time and the memory. With --utilization, reports
the static utilization of the inner tile and compares it with jax's splash attention at several
block sizes. The utilization is an upper bound on the speed, not a measurement.

    pip install "jax[tpu]"
    python -m benchmarks.aot.tpu_aot --utilization
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import shlex
import shutil
import sys
import tempfile
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.aot import llo
from qwen_jax import sizes
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import unknown_name
from qwen_jax.kernels import tiles
from qwen_jax.kernels.attention import attention
from qwen_jax.kernels.tpu import backend as tpu
from qwen_jax.types import Device

# The smallest slice of each kind that all versions of libtpu can describe.
TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
# Changes to our tile sizes, and (block, compute) sizes of splash attention. Larger sizes do not fit
# in the memory of v5e and v5p.
OURS = ({}, {"key": 2048})
SPLASH = ((1024, 512), (1024, 1024), (2048, 1024))
LENGTH = 8192  # tokens
PASSES = ("forward", "backward")


@dataclasses.dataclass(frozen=True)
class Config:
    """Targets and shapes to compile."""

    kinds: tuple[str, ...] = option(tuple(TOPOLOGIES), "TPU kinds to compile for")
    sizes: tuple[str, ...] = option(("1.8b", "7b", "14b"), "model sizes of Table 1 to compile")
    lengths: tuple[int, ...] = option((2048, 8192), "tokens per sequence")
    utilization: bool = option(
        False, "report only the static utilization of the inner tile, ours and splash attention's"
    )
    output: str = option(
        "benchmarks/results/attention_tpu", "output prefix, before _compiled.json and so on"
    )


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape of a call: packed sequence of T tokens, N query and K key-value heads of size H."""

    T: int
    N: int
    K: int
    H: int = 128
    dtype: str = "bfloat16"


def shapes(config: Config) -> dict[str, Shape]:
    """Returns Table 1's shapes, plus one each of grouped heads, head size 64 and float32."""
    found = {}
    for name in config.sizes:
        model = sizes.by_name(name)
        for T in config.lengths:
            found[f"{name}, {T}"] = Shape(T, model.num_heads, model.kv_heads, model.head_dim)
    T = max(config.lengths)
    return found | {
        f"32 / 8 heads, {T}": Shape(T, 32, 8),
        f"heads of 64, {T}": Shape(T, 16, 16, 64),
        f"float32, {T}": Shape(T, 16, 16, dtype="float32"),
    }


def prepare(dump: pathlib.Path | None = None) -> None:
    """Configures libtpu for a machine without a TPU; must be called before libtpu is loaded."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(name, value)
    if dump is not None:
        os.environ["LIBTPU_INIT_ARGS"] = llo.DUMP_FLAGS.format(dump)


def devices(kind: str) -> list[Device]:
    """Returns libtpu's description of the devices of the smallest slice of a kind."""
    if kind not in TOPOLOGIES:
        raise unknown_name("kind of TPU", kind, TOPOLOGIES, "--kinds")
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[kind]).devices


def compile_for(kind: str, function, arguments: list[tuple[tuple[int, ...], str]]) -> dict:
    """Compiles `function` for one device of a kind, with arguments of these shapes and dtypes."""
    mesh = Mesh(devices(kind)[:1], ("device",))
    sharding = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in arguments]
    started = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(function).lower(*arrays)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:  # compiler errors
            return {"ok": False, "error": str(error)[:500]}
    seconds, memory = time.perf_counter() - started, compiled.memory_analysis()
    assert memory is not None, "TPU compilers report the memory of a program"
    return {"ok": True, "seconds": round(seconds, 1), "temp_bytes": memory.temp_size_in_bytes}


def compile_ours(kind: str, shape: Shape, programs=("forward", "gradient")) -> dict:
    """Compiles the forward program, and the gradient program, which contains both kernels."""

    def forward(q, k, v, ids):
        return attention(q, k, v, segment_ids=ids, implementation="tpu")

    def gradient(q, k, v, ids, dout):
        return jax.vjp(lambda q, k, v: forward(q, k, v, ids), q, k, v)[1](dout)

    q = ((1, shape.T, shape.N, shape.H), shape.dtype)
    k = ((1, shape.T, shape.K, shape.H), shape.dtype)
    ids = ((1, shape.T), "int32")
    ways = {"forward": (forward, [q, k, k, ids]), "gradient": (gradient, [q, k, k, ids, q])}
    found = {name: compile_for(kind, *ways[name]) for name in programs}
    return found | {"ok": all(result["ok"] for result in found.values())}


def compile_splash(kind: str, shape: Shape, block: int, compute: int, causal: bool) -> dict:
    """Compiles the gradient of jax's splash attention with its fused backward kernel."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask

    one = (mask.CausalMask if causal else mask.FullMask)((shape.T, shape.T))
    attend = kernel.make_splash_mha(
        mask.MultiHeadMask([one] * shape.N),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=compute,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=compute,
            use_fused_bwd_kernel=True,
        ),
    )

    def gradient(q, k, v, dout):
        return jax.vjp(attend, q, k, v)[1](dout)

    return compile_for(kind, gradient, [((shape.N, shape.T, shape.H), shape.dtype)] * 4)


def utilization(kind: str, dump: pathlib.Path) -> list[dict]:
    """Returns each inner tile's bundles per 1024 x 1024 scores and its MXU utilization."""
    shape, rows = Shape(T=LENGTH, N=8, K=8), []

    def add(who: str, of_pass: dict[str, tuple[tuple[int, int, int], llo.Block]]) -> None:
        row: dict[str, Any] = {"kind": kind, "kernel": who}
        for name, (tile, block) in of_pass.items():
            bundles = round(block.bundles * 2**20 / (tile[0] * tile[1]))
            row[name] = {"tile": tile, "bundles": bundles, "mxu": round(block.shares["MXU"], 4)}
        rows.append(row)
        print(json.dumps(row), flush=True)

    def empty_dump() -> None:
        shutil.rmtree(dump, ignore_errors=True)
        dump.mkdir()

    device = devices(kind)[0].device_kind
    for changed in OURS:
        empty_dump()
        with tiles.override(tpu_forward=changed, tpu_backward=changed):
            tile_sizes = {
                name: tpu.sizes(f"tpu_{name}", kind=device, head_size=shape.H, dtype=shape.dtype)
                for name in PASSES
            }
            if not compile_ours(kind, shape, ("gradient",))["ok"]:
                continue
        for which, who, part in ((0, "ours", "compute"), (1, "ours, with masks", "masked")):
            add(
                who,
                {
                    name: (
                        (size["query"], size["key"], size.get(part, size["compute"])),
                        of_tile(dump, f"attention_{name}")[which],
                    )
                    for name, size in tile_sizes.items()
                },
            )
    for causal in (False, True):
        for block, compute in SPLASH:
            empty_dump()
            if compile_splash(kind, shape, block, compute, causal)["ok"]:
                tile = block, block, compute
                add(
                    "splash, causal" if causal else "splash, no mask",
                    {
                        "forward": (tile, llo.blocks(dump, "splash_mha_fwd_residuals")[0]),
                        "backward": (tile, llo.blocks(dump, "splash_mha_dkv")[0]),
                    },
                )
    return rows


def of_tile(dump: pathlib.Path, kernel: str) -> list[llo.Block]:
    """Returns the unmasked and the masked tile of our kernel.

    They are the two longest blocks. The masked tile does more work in the vector unit.
    """
    return sorted(
        llo.blocks(dump, kernel)[:2], key=lambda block: block.bundles * block.shares["VALU"]
    )


def causal_sequence(unmasked: dict, masked: dict) -> tuple[float, float]:
    """Returns bundles and MXU utilization for one head's causal sequence of `LENGTH` tokens.

    Args:
      unmasked: `utilization` of a tile without a mask.
      masked: `utilization` of a tile on the diagonal.
    """
    query, key, _ = unmasked["tile"]
    bundles = slots = 0.0
    for first_query in range(0, LENGTH, query):
        for first_key in range(0, first_query + query, key):
            tile = unmasked if first_key + key - 1 <= first_query else masked
            took = tile["bundles"] * query * key / 2**20
            bundles, slots = bundles + took, slots + took * tile["mxu"]
    return bundles, slots / bundles


def rows_next_to_splash(found: list[dict]) -> list[str]:
    """Returns a table row per kind: a causal sequence with ours, and with splash at its best."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in found):
        here = [row for row in found if row["kind"] == kind]
        unmasked = next(row for row in here if row["kernel"] == "ours")
        masked = next(row for row in here if row["kernel"] == "ours, with masks")
        cells = []
        for name in PASSES:
            ours, our_share = causal_sequence(unmasked[name], masked[name])
            # Splash computes its mask in every tile.
            theirs, share = min(
                causal_sequence(row[name], row[name])
                for row in here
                if row["kernel"] == "splash, causal"
            )
            cells.append(
                f"{ours:,.0f}, {our_share:.1%} | {theirs:,.0f}, {share:.1%} | {ours / theirs:.2f}"
            )
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def markdown(result: dict) -> str:
    """Returns the tables as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"# TPU attention, compiled without a TPU ({result['date']})",
        "",
        f"`{result['command']}`, {versions}. Nothing here ran on a TPU.",
        "",
    ]

    def cell(one: dict) -> str:
        if not one["ok"]:
            return "does not compile: " + one["error"].splitlines()[0][:120]
        return f"ok, {one['seconds']}, {one['temp_bytes'] / 1e6:.1f}"

    if result["compiled"]:
        lines += [
            "Seconds to lower and compile; temporary memory of the program, MB.",
            "",
            "| kind | shape | forward: s, MB | forward + backward: s, MB |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['kind']} | {row['shape']} | {cell(row['forward'])} | {cell(row['gradient'])} |"
            for row in result["compiled"]
        ]
    if result["utilization"]:
        lines += [
            "Bundles (at least one cycle each) of the innermost tile, per 1,024 x 1,024 scores "
            "of one head of 128 in bfloat16, and the share of MXU slots that they fill. Tiles "
            "are queries x keys / keys at once.",
            "",
            "| kind | kernel | forward | bundles, MXU | backward | bundles, MXU |",
            "|---|---|---|---|---|---|",
        ]
        for row in result["utilization"]:
            cells = [
                "{} x {} / {}".format(*row[name]["tile"])
                + f" | {row[name]['bundles']:,}, {row[name]['mxu']:.1%}"
                for name in PASSES
            ]
            lines.append(f"| {row['kind']} | {row['kernel']} | {' | '.join(cells)} |")
        lines += [
            "",
            f"Bundles of one head's causal sequence of {LENGTH:,} tokens over all visited tiles, "
            "at our tile sizes and at the best ones of splash.",
            "",
            "| kind | forward: ours | splash | ours / splash | backward: ours | splash "
            "| ours / splash |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += rows_next_to_splash(result["utilization"])
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.aot.tpu_aot " + shlex.join(sys.argv[1:]),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
        "tiles": tpu.TILES,
        "compiled": [],
        "utilization": [],
    }
    if config.utilization:  # separate, because dumping schedules takes longer than compiling
        dump = pathlib.Path(tempfile.mkdtemp()) / "llo"
        prepare(dump)
        for kind in config.kinds:
            result["utilization"] += utilization(kind, dump)
            write(result, config.output + "_utilization")
    else:
        prepare()
        for kind in config.kinds:
            for name, shape in shapes(config).items():
                row: dict[str, Any] = {"kind": kind, "shape": name} | compile_ours(kind, shape)
                result["compiled"].append(row)
                print(json.dumps(row), flush=True)
            write(result, config.output + "_compiled")


def write(result: dict, path: str) -> None:
    """Writes the results; called after each kind to keep the results of an interrupted run."""
    for suffix, text in ((".json", json.dumps(result, indent=1) + "\n"), (".md", markdown(result))):
        pathlib.Path(path + suffix).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    flags.run(main, __doc__, {"all": Config()})
