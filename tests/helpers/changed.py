"""The tests of what changed, for `make check`: prints their files, one per line.

    python -m tests.helpers.changed            # since the last commit, including untracked files
    python -m tests.helpers.changed main       # since the branch left main
    python -m tests.helpers.changed --sources  # the code to check for types instead

The tests of qwen_jax/train/step.py are tests/train/test_step.py. For a module without such a mirror
they are the tests that import it, in its folder or anywhere; or else the tests of the modules that
import it; or else all tests of its folder. A changed test runs itself. A deleted module counts as
changed.
"""

import argparse
import ast
import functools
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable

from tests.helpers import house

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE, TESTS = "qwen_jax", "tests"
MOST = 6  # tests per changed file: dozens import config.py, and `make check` takes a minute


def changed_files(base: str | None = None, root: pathlib.Path = ROOT) -> list[str]:
    """Returns the tracked and untracked files that differ from `base`, including deleted ones.

    Args:
      base: a branch or commit; None: the last commit.
    """

    def git(*arguments: str) -> list[str]:
        run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"git {' '.join(arguments)} failed: {run.stderr.strip()}")
        return run.stdout.splitlines()

    start = git("merge-base", base, "HEAD")[0] if base else "HEAD"
    found = git("diff", "--name-only", "--no-renames", start)
    return sorted({*found, *git("ls-files", "--others", "--exclude-standard")})


def mirrors_of(files: Iterable[str], root: pathlib.Path = ROOT) -> list[str]:
    """Returns the test files of the changed files, sorted, each once.

    Prints to stderr how many tests of a file are left out.
    """
    found: set[str] = set()
    for name in files:
        path = pathlib.PurePosixPath(name)
        if path.suffix != ".py" or path.parts[0] not in (*house.FOLDERS, TESTS):
            continue
        if path.parts[0] != TESTS:
            tests = _tests_of_module(name, root, frozenset())
        elif path.name.startswith("test_"):
            tests = [name] if (root / name).is_file() else []
        else:
            tests = _importing(name, root, _is_test)
        if len(tests) > MOST:
            print(f"{name}: {MOST} of its {len(tests)} test files", file=sys.stderr)
        found.update(tests[:MOST])
    return sorted(found)


def sources_of(files: Iterable[str], root: pathlib.Path = ROOT) -> list[str]:
    """Returns the changed code that exists, and the files that import deleted code."""
    found: set[str] = set()
    for name in files:
        if not name.endswith(".py") or name.split("/")[0] not in (*house.FOLDERS, TESTS):
            continue
        if not (root / name).is_file():
            found.update(_importing(name, root, lambda name: True))
        elif name.split("/")[0] in house.FOLDERS:
            found.add(name)
    return sorted(found)


def _tests_of_module(name: str, root: pathlib.Path, seen: frozenset[str]) -> list[str]:
    path = pathlib.PurePosixPath(name)
    inner = path.relative_to(PACKAGE) if path.parts[0] == PACKAGE else path
    folder = pathlib.PurePosixPath(TESTS) / inner.parent
    mirror = folder / f"test_{path.name}"
    if (root / mirror).is_file():
        return [str(mirror)]
    importing = _importing(name, root, _is_test)
    if importing:
        near = [test for test in importing if test.startswith(f"{folder}/")]
        return near or importing
    modules = _importing(name, root, lambda name: not name.startswith(f"{TESTS}/"))
    indirect = {
        test
        for module in modules
        if module not in seen
        for test in _tests_of_module(module, root, seen | {name})
    }
    if indirect:
        return sorted(indirect)
    while not (root / folder).is_dir():
        folder = folder.parent
    return [p.relative_to(root).as_posix() for p in sorted((root / folder).glob("test_*.py"))]


def _is_test(name: str) -> bool:
    return name.startswith(f"{TESTS}/") and name.split("/")[-1].startswith("test_")


def _importing(name: str, root: pathlib.Path, which) -> list[str]:
    """Returns the files for which `which` holds and that import the module of the file `name`."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return [file for file, names in _imports(root).items() if module in names and which(file)]


@functools.cache
def _imports(root: pathlib.Path) -> dict[str, set[str]]:
    """Returns the names that each Python file imports or starts as a program, by file."""
    found = {}
    for folder in (*house.FOLDERS, TESTS):
        for path in sorted((root / folder).rglob("*.py")):
            names = found.setdefault(path.relative_to(root).as_posix(), set())
            text = path.read_text(encoding="utf-8")
            # Programs that are started: [sys.executable, "-m", "experiments.chat"].
            names.update(re.findall(r"\b(?:experiments|launch|benchmarks)(?:\.\w+)+", text))
            try:
                tree = house.tree_of(path)
            except SyntaxError:  # lint reports it
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    names |= {name.name for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", nargs="?", help="a branch or commit; default: the last commit")
    parser.add_argument("--sources", action="store_true", help="print code instead of tests")
    arguments = parser.parse_args()
    files = changed_files(arguments.base)
    print("\n".join(sources_of(files) if arguments.sources else mirrors_of(files)))


if __name__ == "__main__":
    main()
