"""Tokens per second of a training step, against Hugging Face Trainer in the same run.

Measures the 8.4M-parameter model with batch 4 x 256, AdamW and clipping. Ours and the peer
alternate in separate processes, because a machine's speed drifts. The peer runs with default
settings and with the huge pages that our Makefile requests. Also measured: the time of the matmuls,
the overhead of the loop over the bare step, and the predicted memory against the measured peak.

    python -m benchmarks.train.train_step --peer_python=.venv-peers/bin/python
"""

import ctypes
import dataclasses
import gc
import json
import pathlib
import sys
import time

import numpy as np

from benchmarks.common import turns
from qwen_jax.cli import flags
from qwen_jax.config import option


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    peer_python: str = option(
        "", "Python interpreter with torch and transformers; empty: measure only ours"
    )
    rounds: int = option(3, "number of rounds; each measures ours and every peer once")
    steps: int = option(40, "steps per measurement of the bare step, and of the full loop")
    batch_size: int = option(4, "sequences per step")
    dtype: str = option("float32", "dtype of matmuls: float32 or bfloat16")
    only: str = option("", '"ours": print one measurement as JSON, in this process')
    output: str = option("", "JSON file for the table")


def main(config: Config) -> None:
    """Prints the table."""
    if config.only:
        print(json.dumps(measure(config)))
        return
    ours = [
        sys.executable,
        "-m",
        "benchmarks.train.train_step",
        "--only=ours",
        f"--dtype={config.dtype}",
        f"--steps={config.steps}",
        f"--batch_size={config.batch_size}",
    ]

    def peers(measured: dict) -> dict[str, turns.Process]:
        if not config.peer_python:
            return {}
        peer = [
            config.peer_python,
            "benchmarks/peers/hf_trainer.py",
            json.dumps(measured["size"]),
            str(config.steps),
            config.dtype,
        ]
        return {"Hugging Face Trainer": (peer, {}), "the same, huge pages": (peer, turns.HUGE)}

    rows: dict[str, list[dict]] = {}
    for turn, name, row in turns.take(config.rounds, ours, peers):
        rows.setdefault(name, []).append(row)
        print(f"round {turn}: {name:21} {row['tokens_per_second']:8,.0f} tokens/s", flush=True)
    table = show(config, rows)
    if config.output:
        pathlib.Path(config.output).write_text(json.dumps(table, indent=1) + "\n")


def show(config: Config, rows: dict[str, list[dict]]) -> dict[str, dict]:
    """Prints the medians and the time of the matmuls; returns them."""
    last = rows["ours"][-1]
    print(
        f"\n{last['parameters']:,} parameters, {config.dtype}, {config.batch_size} x "
        f"{last['size']['context_length']}; medians of {config.rounds} rounds"
    )
    floors, table = floor_seconds(config, last["size"]), {}
    tokens = config.batch_size * last["size"]["context_length"]
    for name, measured in rows.items():
        floor = floors["jax" if name == "ours" else "torch"]
        speed = float(np.median([row["tokens_per_second"] for row in measured]))
        table[name] = {"tokens_per_second": speed, "floor_seconds": floor, "rounds": measured}
        print(
            f"{name:21} {speed:8,.0f} tokens/s, {1e3 * tokens / speed:6.1f} ms per step, of which "
            f"matmuls {1e3 * floor:6.1f} ms; ours / this "
            f"{table['ours']['tokens_per_second'] / speed:5.2f}   ({measured[-1]['versions']})"
        )
    print(f"the loop adds {100 * (last['loop_seconds'] / last['step_seconds'] - 1):.1f} %")
    print(
        f"memory: predicted {last['announced_mb']:.0f} MB, measured {last['peak_mb']:.0f} MB "
        "(peak of the process during the steps, minus its memory before the state was created)"
    )
    return table


def floor_seconds(config: Config, size: dict) -> dict[str, float]:
    """Returns {library: seconds of the matmuls of one step}."""
    pythons = {"jax": sys.executable} | (
        {"torch": config.peer_python} if config.peer_python else {}
    )
    program = "benchmarks/train/matmul_floor.py"
    return {
        library: turns.run([python, program, config.dtype, library, json.dumps(size)], {})[
            "seconds"
        ]
        for library, python in pythons.items()
    }


def measure(config: Config) -> dict:
    """Measures our bare step, then the same step in the loop."""
    import jax

    from qwen_jax import sizes
    from qwen_jax.config import MeshConfig, OptimizerConfig
    from qwen_jax.model.spec import count, param_specs
    from qwen_jax.parallel.mesh import make_mesh
    from qwen_jax.parallel.sharding import batch_sharding, use_layout
    from qwen_jax.parallel.xla_options import compile_for
    from qwen_jax.train.language_model import make_objective
    from qwen_jax.train.loop import fit
    from qwen_jax.train.optimizer import make_optimizer
    from qwen_jax.train.state import abstract_state, make_state
    from qwen_jax.train.step import make_train_step
    from qwen_jax.train.telemetry import memory
    from qwen_jax.types import Batch

    model = dataclasses.replace(sizes.TOY_8M, compute_dtype=config.dtype)
    mesh = make_mesh(MeshConfig())
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=10), 1000)
    step = make_train_step(make_objective(model), optimizer, seed=0, micro_batches=1)
    shape = (config.batch_size, model.context_length)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, shape).astype(np.int32)
    ones = np.ones(shape, np.int32)
    batch = Batch(
        tokens=ids,
        targets=ids,
        loss_weights=ones.astype(np.float32),
        segment_ids=ones,
        positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
    )
    with use_layout(mesh):
        batch = jax.device_put(batch, batch_sharding(mesh))
        abstract = abstract_state(param_specs(model), optimizer, mesh, dtype="float32")
        platform = mesh.devices.flat[0].platform
        compiled = compile_for(platform, step.lower(abstract, batch))
        announced = memory.measure(compiled, abstract, platform=platform, available=None)
        before = settled_memory()
        state = make_state(0, param_specs(model), optimizer, abstract)
        jax.block_until_ready(state)
        settled_memory()  # excludes temporary memory of the initialization
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        times, reports, done = [], [], 0
        for _ in range(4):  # alternate between the bare step and the loop
            # Time from step end to step end: workspace is freed after the results are ready.
            ends = []
            for _ in range(config.steps // 4 + 1):
                state, metrics = compiled(state, batch)
                jax.block_until_ready((state, metrics))
                ends.append(time.perf_counter())
            times.extend(np.diff(ends))
            done += config.steps // 4 + 1
            state = fit(
                state,
                lambda step, state: batch,
                compiled,
                start_step=done,
                num_steps=done + config.steps // 4 + 1,
                report=reports.append,
            )
            done += config.steps // 4 + 1
        peak = from_status("VmHWM") - before
    seconds = float(np.median(times))
    looped = float(np.median([r.seconds for r in reports if r.seconds is not None]))
    return {
        "tokens_per_second": shape[0] * shape[1] / looped,
        "step_seconds": seconds,
        "loop_seconds": looped,
        "announced_mb": announced.total / 1e6,
        "peak_mb": peak / 1e6,
        "parameters": count(model),
        "versions": f"jax {jax.__version__}",
        "size": dataclasses.asdict(model) | {"batch_size": config.batch_size},
    }


def settled_memory() -> int:
    """Returns the process's resident bytes after the allocator has released free memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return from_status("VmRSS")


def from_status(name: str) -> int:
    """Returns a size from /proc/self/status, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}; this benchmark requires Linux")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
