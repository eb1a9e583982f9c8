"""What the device can do at most, measured: bytes and products a second, with what runs on it.

A copy reads and writes once; both count. Products are of random BF16 matrices (zeros run faster).

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
    """Sizes that fill an accelerator."""

    copy_mb: int = option(4096, "that one copy reads")
    matmul: int = option(8192, "side of a square product")
    rounds: int = option(10, "whose median counts")
    output: str = option("", "a JSON file")


SMOKE = Config(copy_mb=16, matmul=256, rounds=2)


def main(config: Config) -> None:
    """Prints the report."""
    found = timing.machine() | driver() | rates(config)
    for name, value in found.items():
        print(f"{name:22} {value:,.1f}" if isinstance(value, float) else f"{name:22} {value}")
    if config.output:
        pathlib.Path(config.output).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def driver() -> dict[str, str]:
    """NVIDIA's own words, where it has any: name, driver, memory, clocks, power limit."""
    if shutil.which("nvidia-smi") is None:
        return {}
    asked = (
        "name",
        "driver_version",
        "memory.total",
        "clocks.max.sm",
        "clocks.max.memory",
        "power.limit",
    )
    said = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()
    return dict(zip(asked, said[0].split(", "), strict=True))  # the first GPU's


def rates(config: Config) -> dict[str, float]:
    """GB/s of a copy and TFLOP/s of a product: medians over rounds."""
    x = jax.random.normal(jax.random.key(1), (config.copy_mb << 20 >> 2,), jnp.float32)
    copy = jax.jit(lambda x: x * 1.000001)  # a copy alone is no work: XLA would return x
    calls = {"copy": lambda: copy(x), "product": timing.matmul_call(config.matmul, "bfloat16")}
    times = timing.interleaved(calls, rounds=config.rounds, seconds=0.05)
    return {
        "copy_gb_per_s": 2 * x.nbytes / times["copy"].median / 1e9,
        "matmul_tflop_per_s": 2 * config.matmul**3 / times["product"].median / 1e12,
    }


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config(), "smoke": SMOKE})
