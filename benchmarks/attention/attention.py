"""Attention on the local device: numerics check, then TFLOP/s of ours and peers, alternating.

The forward pass counts 4 S^2 H N operations per document of S tokens, halved for causality. The
backward pass counts 2.5 times as many. On packed sequences, the speed therefore counts only visible
scores. The backward pass is timed in two ways: as a separate program (with the residuals of a
forward pass), and as the time of both passes minus the forward pass. The utilization is relative to
the matmul rate of this device in the same run. All lengths have the same number of tokens per
batch, so the batch size shrinks as the length grows.

    python -m benchmarks.attention.attention                 # tables, JSON and a plot
    python -m benchmarks.attention.attention --recipe=smoke  # under a minute on a CPU
    python -m benchmarks.attention.attention --tune          # tunes tiles for kernels/tiles.json
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax

from benchmarks.attention import attention_plot, attention_tune
from benchmarks.attention.attention_peers import contestants, documents, programs
from benchmarks.common import timing
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError
from qwen_jax.kernels.validation import Case, error_ratios

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
MASKS = ("causal", "one", "four", "mix")
PASSES = ("forward", "backward", "both")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure. 0 and empty tuples mean the device's default."""

    lengths: tuple[int, ...] = option(
        (), "sequence lengths to measure; empty: the device's default"
    )
    tokens: int = option(0, "tokens per batch; the batch size is tokens / length")
    hidden: int = option(0, "hidden size: number of heads x head size")
    group: int = option(1, "query heads per key-value head")
    head_sizes: tuple[int, ...] = option((64, 128), "head sizes to measure")
    dtypes: tuple[str, ...] = option((), "dtypes of queries, keys and values")
    masks: tuple[str, ...] = option(
        MASKS, "masks to measure: causal, one, four (equal documents), mix"
    )
    rounds: int = option(5, "number of rounds; each runs every contestant")
    milliseconds: float = option(50.0, "duration of a contestant's calls in one round, in ms")
    matmul: int = option(0, "side of the square matmul that measures the FLOP rate of the device")
    only: tuple[str, ...] = option(
        (), "measure only contestants whose names start with these; empty: all"
    )
    check: bool = option(True, "check the errors against float32 first")
    tune: bool = option(False, "tune tile sizes instead of measuring contestants")
    output: str = option(str(RESULTS), "folder for attention_DEVICE.json and .png")


SMOKE = Config(
    lengths=(256,),
    tokens=512,
    hidden=128,
    head_sizes=(64,),
    dtypes=("float32",),
    masks=("causal", "four"),
    rounds=2,
    milliseconds=5.0,
    matmul=256,
    output="",
)


def for_device(config: Config, platform: str) -> Config:
    """Returns the config with unset fields replaced by the platform's defaults."""
    defaults = {
        "lengths": (1024, 2048, 4096, 8192, 16384),
        "tokens": 16384,
        "hidden": 2048,
        "dtypes": ("bfloat16",),
        "matmul": 8192,
    }
    if platform == "cpu":
        defaults = {
            "lengths": (256, 1024, 2048, 4096),
            "tokens": 4096,
            "hidden": 512,
            "dtypes": ("float32", "bfloat16"),
            "matmul": 2048,
        }
    changes = {name: value for name, value in defaults.items() if not getattr(config, name)}
    config = dataclasses.replace(config, **changes)
    unknown = sorted(set(config.masks) - set(MASKS))
    if unknown:
        raise ConfigError(f"unknown mask {unknown[0]!r}.", "--masks", f"use {', '.join(MASKS)}.")
    return config


def main(config: Config) -> None:
    """Prints a table and writes a JSON file and a plot."""
    config = for_device(config, jax.devices()[0].platform)
    about = timing.machine()
    print(", ".join(f"{name} {value}" for name, value in about.items() if value))
    if config.tune:
        attention_tune.run(cases(config), rounds=config.rounds, seconds=config.milliseconds / 1e3)
        return
    errors = check(config) if config.check else {}
    rows, rates = [], {}
    for case, mask in cases(config):
        if case.dtype not in rates:
            rates[case.dtype] = matmul_rate(config, case.dtype)
            print(f"\n{case.dtype} matmul of {config.matmul}: {rates[case.dtype]:.3f} TFLOP/s")
        found = measure(config, case, mask, rates[case.dtype])
        rows += found
        show(case, mask, found)
    if config.output:
        folder = pathlib.Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"attention_{about['device'].replace(' ', '_')}.json"
        path.write_text(
            json.dumps(
                {
                    "machine": about,
                    "config": dataclasses.asdict(config),
                    "errors": errors,
                    "matmul_tflops": rates,
                    "rows": rows,
                },
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )
        attention_plot.save(rows, about, path.with_suffix(".png"))
        print(f"\nwrote {path} and its plot")


def cases(config: Config) -> list[tuple[Case, str]]:
    """Returns every input to time and the name of its mask."""
    return [
        (
            Case(
                T=T,
                B=max(1, config.tokens // T),
                N=config.hidden // H,
                K=max(1, config.hidden // H // config.group),
                H=H,
                dtype=dtype,
                documents=documents(mask, T),
            ),
            mask,
        )
        for dtype in config.dtypes
        for H in config.head_sizes
        for mask in config.masks
        for T in config.lengths
    ]


def check(config: Config) -> dict[str, dict[str, float]]:
    """Returns error / tolerance for each of our backends that runs on this device.

    The length is not a multiple of any tile size, and the tests use other seeds.
    """
    found = {}
    for dtype in config.dtypes:
        for H in config.head_sizes:
            for name, documents_ in (("causal", None), ("packed", (100, 1, 199, 150))):
                case = Case(
                    T=500, N=4, K=2, H=H, dtype=dtype, documents=documents_, seed=20_000 + H
                )
                q, k, *_ = case.arrays()
                for who in contestants(q, k, case.options().get("segment_ids")):
                    if who.ours and who.attend:
                        key = f"{who.name}, {dtype}, head {H}, {name}"
                        found[key] = error_ratios(case, who.name.split()[-1])
                        worst = max(found[key].values())
                        print(f"{key}: worst error {worst:.2f} x its tolerance", flush=True)
                        if not worst <= 1:
                            raise SystemExit(f"{key}: errors exceed the tolerance: {found[key]}")
    return found


def matmul_rate(config: Config, dtype: str) -> float:
    """Returns the TFLOP/s of a large matmul."""
    calls = {"matmul": timing.matmul_call(config.matmul, dtype)}
    took = timing.interleaved(calls, rounds=config.rounds, seconds=config.milliseconds / 1e3)
    return 2 * config.matmul**3 / took["matmul"].median / 1e12


def operations(case: Case) -> dict[str, float]:
    """Returns the operations of each pass; only the visible half of each document counts."""
    squares = sum(length**2 for length in case.documents or (case.T,))
    forward = 4 * squares * case.H * case.N * case.B / 2
    return {"forward": forward, "backward": 2.5 * forward, "both": 3.5 * forward}


def measure(config: Config, case: Case, mask: str, rate: float) -> list[dict]:
    """Returns one row per contestant: its times, or the reason it cannot run."""
    arrays, options = case.arrays(), case.options()
    rows: list[dict] = []
    calls: dict[str | tuple[str, str], Callable] = {"nothing": timing.empty_call()}
    about = {
        "mask": mask,
        "T": case.T,
        "B": case.B,
        "N": case.N,
        "K": case.K,
        "H": case.H,
        "dtype": case.dtype,
    }
    for who in contestants(arrays[0], arrays[1], options.get("segment_ids")):
        if config.only and not who.name.startswith(config.only):
            continue
        reason = who.reason
        if who.attend:
            try:
                calls |= {
                    (who.name, name): call for name, call in programs(who, arrays, options).items()
                }
            # jax and tokamax raise these if there is no kernel or not enough memory
            # (NotImplementedError is a RuntimeError). Our backends may only run out of memory.
            except (RuntimeError, ValueError, TypeError) as error:
                if who.ours and "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        rows.append(about | {"name": who.name} | ({"refused": reason} if reason else {}))
    took = timing.interleaved(calls, rounds=config.rounds, seconds=config.milliseconds / 1e3)
    for row in rows:
        if "refused" not in row:
            times = {name: took[row["name"], name] for name in PASSES}
            row |= figures(times, operations(case), rate, took["nothing"].median)
    return rows


def figures(
    times: dict[str, timing.Timing], work: dict[str, float], rate: float, dispatch: float
) -> dict:
    """Returns, for each pass, the seconds, TFLOP/s and fraction of the matmul rate."""
    row: dict = {}
    for name in PASSES:
        speed = work[name] / times[name].median / 1e12
        row[name] = dataclasses.asdict(times[name]) | {"tflops": speed, "share": speed / rate}
    rest = times["both"].median - times["forward"].median
    if rest > 0:
        row["both_less_forward"] = {"median": rest, "tflops": work["backward"] / rest / 1e12}
    row["host_bound"] = times["forward"].median < 3 * dispatch  # mostly host time
    return row


def show(case: Case, mask: str, rows: list[dict]) -> None:
    """Prints the table of one input."""
    print(
        f"\n{mask}, {case.dtype}, {case.B} x {case.T}, {case.N} heads ({case.K} KV heads) of "
        f"{case.H}; TFLOP/s, (fraction of the matmul rate), milliseconds min-median-max"
    )
    for row in rows:
        if "refused" in row:
            print(f"  {row['name']:24} -  {row['refused'].strip()}")
            continue
        cells = [
            f"{name} {row[name]['tflops']:7.3f} ({row[name]['share']:4.0%}) "
            f"{1e3 * row[name]['min']:.2f}-{1e3 * row[name]['median']:.2f}-"
            f"{1e3 * row[name]['max']:.2f}"
            for name in PASSES
        ]
        rest = row.get("both_less_forward")
        print(
            f"  {row['name']:24} "
            + "  ".join(cells)
            + (f"  both - forward {rest['tflops']:.3f}" if rest else "")
            + ("  (host-bound: too short to time)" if row["host_bound"] else ""),
            flush=True,
        )


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config(), "smoke": SMOKE})
