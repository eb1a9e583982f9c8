"""The tests of what changed, for `make check`: prints their files, one a line.

    python -m tests.helpers.changed            # since the last commit, untracked files included
    python -m tests.helpers.changed main       # since the branch left main
    python -m tests.helpers.changed --sources  # the changed code instead, for the type checker

The tests of qwen_jax/train/step.py are tests/train/test_step.py. A module without such a mirror has
the tests of its room that import it. A changed test runs itself.
"""

import argparse
import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterable

from tests.helpers import house

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE, TESTS = "qwen_jax", "tests"


def changed_files(base: str | None = None, root: pathlib.Path = ROOT) -> list[str]:
    """Tracked and untracked files that differ from `base` (None: the last commit); not deleted."""

    def git(*arguments: str) -> list[str]:
        run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"git {' '.join(arguments)} failed: {run.stderr.strip()}")
        return run.stdout.splitlines()

    start = git("merge-base", base, "HEAD")[0] if base else "HEAD"
    found = git("diff", "--name-only", start) + git("ls-files", "--others", "--exclude-standard")
    return sorted({name for name in found if (root / name).is_file()})


def mirrors_of(files: Iterable[str], root: pathlib.Path = ROOT) -> list[str]:
    """Test files of the changed files, sorted, each once."""
    found = set()
    for name in files:
        path = pathlib.PurePosixPath(name)
        if path.suffix != ".py":
            continue
        if path.parts[0] == TESTS:
            if path.name.startswith("test_"):
                found.add(name)
            elif path.parts[1] == "helpers":
                found |= _importers(name, root / TESTS, root)
            continue
        inner = path.relative_to(PACKAGE) if path.parts[0] == PACKAGE else path
        room = pathlib.PurePosixPath(TESTS) / inner.parent
        mirror = room / f"test_{path.name}"
        if (root / mirror).is_file():
            found.add(str(mirror))
        elif (root / room).is_dir():
            found |= _importers(name, root / room, root)
    return sorted(found)


def _importers(name: str, room: pathlib.Path, root: pathlib.Path) -> set[str]:
    """Test files below `room` that import the module of the file `name`."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return {
        path.relative_to(root).as_posix()
        for path in room.rglob("test_*.py")
        if module in _imports(path)
    }


def _imports(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", help="a branch or commit; default: the last commit")
    parser.add_argument("--sources", action="store_true", help="the changed code instead")
    arguments = parser.parse_args()
    files = changed_files(arguments.base)
    code = [f for f in files if f.endswith(".py") and f.split("/")[0] in house.FOLDERS]
    shown = code if arguments.sources else mirrors_of(files)
    print("\n".join(shown))


if __name__ == "__main__":
    main()
