"""Checks the numerics of one backend over its full grid: cases, time, worst error / tolerance.

Backends for a device that this machine does not have run in an interpreter.

python -m benchmarks.attention.attention_validation --name=xla
python -m benchmarks.attention.attention_validation --name=tpu
python -m benchmarks.attention.attention_validation --name=hopper --dtypes=bfloat16,float16
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import time

import jax
import tqdm

from benchmarks.common import timing
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import KernelError, unknown_name
from qwen_jax.kernels.attention import IMPLEMENTATIONS
from qwen_jax.kernels.platform import interpret_kernels
from qwen_jax.kernels.validation import NAMES, Case, error_ratios, masks
from qwen_jax.parallel.cpu import virtual_devices

HEADS = ((2, 2), (4, 2), (8, 1))  # query heads, key-value heads


def interpret_hopper():
    """Returns the context of the tests' Mosaic GPU interpreter, an extension of Pallas's."""
    from tests.helpers import hopper_interpreter

    return hopper_interpreter.interpreted()


INTERPRETERS = {"tpu": ("tpu", interpret_kernels), "hopper": ("gpu", interpret_hopper)}


@dataclasses.dataclass(frozen=True)
class Config:
    """The test grid of one backend."""

    name: str = option("xla", "attention backend: xla, tpu or hopper")
    lengths: tuple[int, ...] = option((1, 7, 128, 129, 1000, 2048), "tokens per sequence")
    head_sizes: tuple[int, ...] = option((64, 128), "head sizes")
    dtypes: tuple[str, ...] = option(("float32", "bfloat16"), "dtypes of queries, keys and values")
    every: int = option(
        1, "run only every n-th case; interpreted kernels take minutes for long sequences"
    )
    output: str = option(
        str(pathlib.Path(__file__).resolve().parents[1] / "results"), "folder for the results"
    )


SMOKE = Config(lengths=(7, 129), head_sizes=(64,), output="")


def main(config: Config) -> None:
    """Prints a line per dtype and writes attention_validation_NAME.json."""
    if config.name not in IMPLEMENTATIONS:
        raise unknown_name("backend", config.name, IMPLEMENTATIONS, "--name", KernelError)
    interpreting = INTERPRETERS.get(config.name, (None, contextlib.nullcontext))[1]
    interpreted = (
        INTERPRETERS.get(config.name, (jax.default_backend(),))[0] != jax.default_backend()
    )
    about = timing.machine()
    result = {"machine": about, "name": config.name, "interpreted": interpreted, "dtypes": {}}
    for dtype in config.dtypes:
        started, worst, count = time.perf_counter(), {}, 0
        with interpreting() if interpreted else contextlib.nullcontext():
            for case in tqdm.tqdm(grid(config, dtype), f"{config.name}, {dtype}", mininterval=10):
                count += 1
                for name, ratio in error_ratios(case, config.name).items():
                    if not ratio <= worst.get(name, {"ratio": -1.0})["ratio"]:  # NaN is the worst
                        worst[name] = {"ratio": ratio, "case": dataclasses.asdict(case)}
                if count % len(masks(case.T)) == 0:  # hundreds of programs would fill memory
                    jax.clear_caches()
        seconds = time.perf_counter() - started
        result["dtypes"][dtype] = {"cases": count, "seconds": seconds, "worst": worst}
        shown = ", ".join(f"{name} {worst[name]['ratio']:.2f}" for name in NAMES if name in worst)
        print(
            f"{config.name}{' (interpreted)' if interpreted else ''}, {dtype}: {count} cases in "
            f"{seconds:.0f} s; worst error / tolerance: {shown}",
            flush=True,
        )
        if config.output:  # after each dtype, because an interpreter takes hours
            path = pathlib.Path(config.output) / f"attention_validation_{config.name}.json"
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if any(
        not found["ratio"] <= 1
        for dtype in result["dtypes"].values()
        for found in dtype["worst"].values()
    ):
        raise SystemExit("an error exceeds its tolerance")


def grid(config: Config, dtype: str) -> list[Case]:
    """Returns the cases: lengths x heads x head sizes x masks."""
    cases = [
        Case(T=T, N=N, K=K, H=H, dtype=dtype, **mask)
        for T, (N, K), H in itertools.product(config.lengths, HEADS, config.head_sizes)
        for mask in masks(T).values()
    ]
    return cases[:: config.every]


if __name__ == "__main__":
    # As in the tests: each waiting warpgroup of the Hopper interpreter blocks an XLA thread. With
    # one thread per core, the last warpgroup would not get a thread.
    jax.config.update("jax_num_cpu_devices", 8)
    virtual_devices.reserve_threads()
    flags.run(main, __doc__, {"default": Config(), "smoke": SMOKE})
