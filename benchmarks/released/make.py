"""Makes the folders of the matrix, and what transformers says of them.

Peers run in processes of their own: transformers 4 and 5 cannot be in one.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from benchmarks.released import folders, inputs
from benchmarks.released.cells import Cell

_REFERENCE = pathlib.Path(__file__).with_name("reference.py")


def make(
    cells: Sequence[Cell], root: pathlib.Path, shared: pathlib.Path, peers: Mapping[int, str]
) -> None:
    """Writes ROOT/CELL/model, and ROOT/CELL/expected by transformers; skips what is there.

    Args:
      peers: version of transformers -> a Python that has it.
    """
    for cell in cells:
        place = root / cell.name
        source = place / ("model" if cell.writer is None else "source")
        if not (source / "config.json").is_file():
            size = None if cell.column == "full vocabulary" else 2000
            ranks = None
            if cell.family != "Qwen-1":
                ranks = folders.read_ranks(shared, size)
            folders.write(source, cell.family, cell.kind, shared, form=cell.form, ranks=ranks)
    jobs: dict[int, list] = {4: [], 5: []}
    for cell in cells:
        place = root / cell.name
        if cell.family == "Qwen-1" or (place / "expected/expected.json").is_file():
            continue
        jobs[cell.writer or 5].append(
            {
                "source": str(place / ("model" if cell.writer is None else "source")),
                "folder": None if cell.writer is None else str(place / "model"),
                "sharded": cell.kind == "sharded",
                "output": str(place / "expected"),
            }
        )
    for version, listed in jobs.items():
        if listed and version in peers:
            run_reference(peers[version], root / f"jobs{version}.json", listed, shared)


def run_reference(python: str, file: pathlib.Path, jobs: list, shared: pathlib.Path) -> None:
    """Runs reference.py; jobs: its "folders"."""
    content = {
        "texts": inputs.texts(shared),
        "conversations": inputs.conversations(),
        "questions": list(inputs.QUESTIONS),
        "folders": jobs,
    }
    file.write_text(json.dumps(content), encoding="utf-8")
    done = subprocess.run([python, str(_REFERENCE), str(file)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
