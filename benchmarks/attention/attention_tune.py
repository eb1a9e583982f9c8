"""Tunes tile sizes for the local device: times a small grid and updates kernels/tiles.json."""

import itertools
import json
import pathlib

import jax

from benchmarks.attention.attention_peers import contestants, programs
from benchmarks.common import timing
from qwen_jax.errors import QwenJaxError
from qwen_jax.kernels import tiles
from qwen_jax.kernels.validation import Case, check

# For each backend: kernel -> sizes to try. Names are those that the kernels look up.
GRID = {
    "xla": {"xla": {"query": (128, 256, 512), "key": (128, 256, 512)}},
    "tpu": {
        "tpu_forward": {
            "query": (512, 1024, 2048),
            "key": (512, 1024, 2048),
            "compute": (256, 512, 1024),
        },
        "tpu_backward": {
            "query": (512, 1024, 2048),
            "key": (512, 1024, 2048),
            "compute": (256, 512, 1024),
        },
    },
    "hopper": {
        "hopper_forward": {"consumers": (2, 3), "keys": (64, 128, 176), "stages": (2, 3)},
        "hopper_backward": {"early_dv": (0, 1)},
    },
}


def run(
    cases: list[tuple[Case, str]], *, rounds: int, seconds: float, table: pathlib.Path = tiles.TABLE
) -> list[dict]:
    """Tunes each kernel for each head size and dtype on the longest causal case."""
    longest: dict[tuple[int, str], Case] = {}
    for case, mask in cases:
        key = case.H, case.dtype
        if mask == "causal" and (key not in longest or case.T > longest[key].T):
            longest[key] = case
    rows = []
    for case in longest.values():
        q, k, *_ = case.arrays()
        for who in contestants(q, k, None):
            name = who.name.split()[-1]
            if who.ours and who.attend and name in GRID:
                for kernel, grid in GRID[name].items():
                    row = best(case, name, kernel, grid, rounds=rounds, seconds=seconds)
                    rows += [row] if row else []
    write(rows, table)
    for case in longest.values():  # check the new tile sizes in newly traced programs
        for name in {row["backend"] for row in rows}:
            check(Case(T=500, H=case.H, dtype=case.dtype, documents=(100, 1, 199, 150)), name)
    return rows


def best(
    case: Case,
    name: str,
    kernel: str,
    grid: dict[str, tuple[int, ...]],
    *,
    rounds: int,
    seconds: float,
) -> dict | None:
    """Returns a table row with the fastest sizes of a kernel, or None if no sizes compile."""
    q, k, *_ = arrays = case.arrays()
    who = next(c for c in contestants(q, k, None) if c.ours and c.name.split()[-1] == name)
    calls, which = {}, "forward" if kernel.endswith("forward") else "both"
    for sizes in itertools.product(*grid.values()):
        sizes = dict(zip(grid, sizes, strict=True))
        if sizes.get("compute", 0) > sizes.get("key", 0):
            continue
        try:
            with tiles.override(**{kernel: sizes}):
                calls[tuple(sizes.items())] = programs(who, arrays, {})[which]
        except QwenJaxError:  # our own errors depend on the call, so they apply to all sizes
            raise
        # Compiler errors: insufficient on-chip memory, or unsupported sizes.
        except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
            print(f"  {kernel} {sizes}: {str(error).strip().splitlines()[0][:120]}")
    if not calls:
        return None
    took = timing.interleaved(calls, rounds=rounds, seconds=seconds)
    ranked = sorted(took, key=lambda sizes: took[sizes].median)
    for sizes in ranked[:3]:
        print(
            f"  {kernel}, head size {case.H}, {case.dtype}: {dict(sizes)} "
            f"{1e3 * took[sizes].median:.2f} ms",
            flush=True,
        )
    about = timing.machine()
    return {
        "kernel": kernel,
        "kind": about["device"],
        "head_size": case.H,
        "dtype": case.dtype,
        "tiles": dict(ranked[0]),
        "backend": name,
        "T": case.T,
        "milliseconds": round(1e3 * took[ranked[0]].median, 4),
        "date": about["date"],
        "jax": about["jax"],
    }


def write(rows: list[dict], table: pathlib.Path) -> None:
    """Adds rows to the table; replaces rows with the same kernel, device, head size and dtype."""

    def key(row):
        return row["kernel"], row["kind"], row["head_size"], row["dtype"]

    new = {key(row): row for row in json.loads(table.read_text(encoding="utf-8"))}
    new |= {key(row): row for row in rows}
    lines = ",\n ".join(json.dumps(new[name]) for name in sorted(new))
    table.write_text(f"[{lines}]\n", encoding="utf-8")
    tiles.table.cache_clear()
    jax.clear_caches()
