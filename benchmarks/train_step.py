"""Tokens per second of a training step, against Hugging Face Trainer, in turn, in one run.

The 8.4M-parameter model in FP32: batch 4 x 256, AdamW, clipping. Both run in a process of their
own, ours and the peer's alternating, because a machine's speed drifts. Also: what the loop adds to
the bare step, and the memory that is announced against the peak that is reached.

    python -m benchmarks.train_step --peer_python=.venv-peers/bin/python
"""

import ctypes
import dataclasses
import gc
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

from experiments import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison."""

    peer_python: str = ""  # an interpreter with torch and transformers; empty: ours alone
    rounds: int = 3  # ours and the peer's in turn
    steps: int = 20
    batch_size: int = 4
    only: str = ""  # "ours": one measurement as JSON, in this process
    output: str = ""  # a JSON file for the table


def main(config: Config) -> None:
    """Prints the table."""
    if config.only:
        print(json.dumps(measure(config)))
        return
    ours, peer = [], []
    command = [sys.executable, "-m", "benchmarks.train_step", "--only=ours",
               f"--steps={config.steps}", f"--batch_size={config.batch_size}"]
    for turn in range(config.rounds):
        ours.append(run(command))
        print(f"round {turn + 1}: ours {ours[-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
        if config.peer_python:
            peer.append(run([config.peer_python, "benchmarks/peers/hf_trainer.py",
                             json.dumps(ours[-1]["size"]), str(config.steps)]))
            print(f"round {turn + 1}: peer {peer[-1]['tokens_per_second']:,.0f} tokens/s",
                  flush=True)
    table = {"ours": ours, "peer": peer}
    best = {name: float(np.median([row["tokens_per_second"] for row in rows]))
            for name, rows in table.items() if rows}
    last = ours[-1]
    print(f"\n{last['parameters']:,} parameters, FP32, {config.batch_size} x "
          f"{last['size']['context_length']}, {last['versions']}")
    print(f"ours                  {best['ours']:8,.0f} tokens/s")
    if peer:
        print(f"Hugging Face Trainer  {best['peer']:8,.0f} tokens/s   ({peer[-1]['versions']})")
        table["ratio"] = best["ours"] / best["peer"]
        print(f"ratio                 {table['ratio']:8.2f}")
    print(f"the loop adds         {100 * (last['loop_seconds'] / last['step_seconds'] - 1):8.1f} %")
    print(f"memory: announced {last['announced_mb']:.0f} MB, measured {last['peak_mb']:.0f} MB (peak "
          "of the process during the steps, above what it had before the state was made)")
    if config.output:
        pathlib.Path(config.output).write_text(json.dumps(table, indent=1) + "\n")


def run(command: list[str]) -> dict:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(config: Config) -> dict:
    """Our step alone, then the same step in the loop."""
    import jax

    from qwen_jax import sizes
    from qwen_jax.config import MeshConfig, OptimizerConfig
    from qwen_jax.model.spec import count
    from qwen_jax.parallel.mesh import make_mesh
    from qwen_jax.parallel.rules import batch_sharding, use_layout
    from qwen_jax.train import memory
    from qwen_jax.train.language_model import make_objective
    from qwen_jax.train.loop import fit
    from qwen_jax.train.optimizer import make_optimizer
    from qwen_jax.train.state import abstract_state, make_state
    from qwen_jax.train.step import make_train_step
    from qwen_jax.types import Batch

    model, mesh = sizes.TOY_8M, make_mesh(MeshConfig())
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=10), 1000)
    step = make_train_step(make_objective(model), optimizer, seed=0, micro_batches=1)
    shape = (config.batch_size, model.context_length)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, shape).astype(np.int32)
    ones = np.ones(shape, np.int32)
    batch = Batch(tokens=ids, targets=ids, loss_weights=ones.astype(np.float32), segment_ids=ones,
                  positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape))
    with use_layout(mesh):
        batch = jax.device_put(batch, batch_sharding(mesh))
        abstract = abstract_state(model, optimizer, mesh)
        compiled = step.lower(abstract, batch).compile()
        announced = memory.measure(compiled, abstract, available=None)
        before = settled_memory()
        state = make_state(0, model, optimizer, abstract)
        jax.block_until_ready(state)
        settled_memory()  # what initialisation needed for a moment is not the step's
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        times = []
        for _ in range(config.steps):
            started = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - started)
        peak = from_status("VmHWM") - before
        reports = []
        fit(state, lambda step, state: batch, compiled, start_step=config.steps,
            num_steps=2 * config.steps, report=reports.append)
    seconds = float(np.median(times[2:]))
    looped = float(np.median([r.seconds for r in reports if r.seconds is not None]))
    return {"tokens_per_second": shape[0] * shape[1] / looped, "step_seconds": seconds,
            "loop_seconds": looped, "announced_mb": announced.total / 1e6, "peak_mb": peak / 1e6,
            "parameters": count(model), "versions": f"jax {jax.__version__}",
            "size": dataclasses.asdict(model) | {"batch_size": config.batch_size}}


def settled_memory() -> int:
    """Bytes that the process holds once the allocator has handed back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return from_status("VmRSS")


def from_status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}; memory is measured on Linux alone")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
