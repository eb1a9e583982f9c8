"""Folders of every Qwen, in and out: makes them, tries them, and writes the table.

    python -m benchmarks.released.matrix --shared=../shared --work=runs/released \\
        --transformers5=PYTHON --transformers4=PYTHON

Runs in an environment with PyTorch and transformers 5 (make test-peers makes one). Results go to
WORK/matrix.jsonl, and those that passed are not measured again; --table prints them as Markdown.
"""

import argparse
import functools
import json
import pathlib
import time
import traceback
from collections.abc import Callable, Sequence

import jax

from benchmarks.common.timing import machine
from benchmarks.released import checks, greedy
from benchmarks.released.cells import CELLS, COLUMNS, Cell, missing
from benchmarks.released.families import FAMILIES
from benchmarks.released.make import make
from qwen_jax.model import transformer

forward = jax.jit(transformer.forward, static_argnames="config")
CHECKS: dict[str, Callable[[checks.Place], str]] = {
    "logits": functools.partial(checks.logits, forward=forward),
    "ids": checks.ids,
    "template": checks.template,
    "round trip": checks.round_trip,
    "text": greedy.texts,
    "SFT and export": checks.train_and_export,
}


def measure(place: checks.Place, name: str) -> str:
    """Returns what a check found, or "FAILED: ..."."""
    started = time.perf_counter()
    try:
        found = CHECKS[name](place)
    except Exception as error:  # a failed check is a result
        traceback.print_exc()
        found = f"FAILED: {type(error).__name__}: {error}"[:600]
    seconds = time.perf_counter() - started
    print(f"{place.cell.name}: {name}: {found} ({seconds:.0f} s)", flush=True)
    return found


def table(lines: Sequence[dict]) -> str:
    """Returns the results as Markdown, a row per cell, and the combinations that do not exist."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        found.setdefault((line["family"], line["column"]), {}).update(line["found"])
    rows = [f"| family | folder | {' | '.join(CHECKS)} |", "|---" * (2 + len(CHECKS)) + "|"]
    for cell in sorted(CELLS, key=lambda cell: list(FAMILIES).index(cell.family)):
        results = found.get((cell.family, cell.column), {})
        values = [results.get(name, "not run").replace("|", "\\|")[:80] for name in CHECKS]
        rows.append(f"| {cell.family} | {cell.column} | {' | '.join(values)} |")
    absent = [
        f"- {family}, {column}: {why}."
        for family in FAMILIES
        for column in COLUMNS
        if (why := missing(family, column))
    ]
    return "\n".join([*rows, "", "Combinations that do not exist:", "", *absent])


def select(text: str | None) -> list[Cell]:
    """Returns the cells whose names contain one of the words, or all."""
    words = text.split(",") if text else [""]
    return [cell for cell in CELLS if any(word in cell.name for word in words)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/released"))
    parser.add_argument("--transformers5", help="a Python with transformers 5")
    parser.add_argument("--transformers4", help="a Python with transformers 4")
    parser.add_argument("--cells", help="words in the names of cells, such as Qwen3-,yarn")
    parser.add_argument("--checks", default=",".join(CHECKS))
    parser.add_argument("--table", action="store_true", help="print the results and end")
    arguments = parser.parse_args()
    file = arguments.work / "matrix.jsonl"
    lines = list(map(json.loads, file.read_text().splitlines())) if file.exists() else []
    if arguments.table:
        print(table(lines))
        return
    cells, names = select(arguments.cells), arguments.checks.split(",")
    peers = {4: arguments.transformers4, 5: arguments.transformers5}
    arguments.work.mkdir(parents=True, exist_ok=True)
    make(cells, arguments.work, arguments.shared, {k: v for k, v in peers.items() if v})
    done = {
        (line["family"], line["column"], name)
        for line in lines
        for name, found in line["found"].items()
        if not found.startswith("FAILED")
    }
    for cell in cells:
        place = checks.Place(cell, arguments.work, arguments.shared)
        for name in names:
            if (cell.family, cell.column, name) in done:
                continue
            line = {"family": cell.family, "column": cell.column, "machine": machine()}
            line["found"] = {name: measure(place, name)}
            with file.open("a") as out:
                out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
