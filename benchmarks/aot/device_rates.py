"""Measured peak rates of the device: memory bandwidth and BF16 matmul throughput.

The bandwidth of a copy counts both its read and its write. Matmuls use random BF16 matrices,
because zeros run faster.

    python -m benchmarks.aot.device_rates --output=environment.json
"""

import dataclasses
import json
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp

from benchmarks.common import timing
from qwen_jax.cli import flags
from qwen_jax.config import option


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes large enough to saturate an accelerator."""

    copy_mb: int = option(4096, "MB read by one copy")
    matmul: int = option(8192, "side of a square matmul")
    rounds: int = option(10, "measurement rounds; the median is reported")
    output: str = option("", "JSON file for the results")


SMOKE = Config(copy_mb=16, matmul=256, rounds=2)


def main(config: Config) -> None:
    """Prints the rates and writes the JSON file."""
    found = timing.machine() | driver() | rates(config)
    for name, value in found.items():
        print(f"{name:22} {value:,.1f}" if isinstance(value, float) else f"{name:22} {value}")
    if config.output:
        pathlib.Path(config.output).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def driver() -> dict[str, str]:
    """Returns name, driver, memory, clocks and power limit from nvidia-smi, or {} without it."""
    if shutil.which("nvidia-smi") is None:
        return {}
    fields = (
        "name",
        "driver_version",
        "memory.total",
        "clocks.max.sm",
        "clocks.max.memory",
        "power.limit",
    )
    lines = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()
    return dict(zip(fields, lines[0].split(", "), strict=True))  # the first GPU


def rates(config: Config) -> dict[str, float]:
    """Returns the GB/s of a copy and the TFLOP/s of a matmul: medians over rounds."""
    x = jax.random.normal(jax.random.key(1), (config.copy_mb << 20 >> 2,), jnp.float32)
    copy = jax.jit(lambda x: x * 1.000001)  # XLA would optimize a plain copy away
    calls = {"copy": lambda: copy(x), "matmul": timing.matmul_call(config.matmul, "bfloat16")}
    times = timing.interleaved(calls, rounds=config.rounds, seconds=0.05)
    return {
        "copy_gb_per_s": 2 * x.nbytes / times["copy"].median / 1e9,
        "matmul_tflop_per_s": 2 * config.matmul**3 / times["matmul"].median / 1e12,
    }


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config(), "smoke": SMOKE})
