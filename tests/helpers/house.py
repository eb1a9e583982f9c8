"""Measures the structure of the code: lines by folder, imports between folders, long files.

    python -m tests.helpers.house            # or: make house
    python -m tests.helpers.house --root=..  # another checkout
    python -m tests.helpers.house --check    # only violations of the rules in WORKSPACE.md

tests/test_house.py checks the rules with the same functions.
"""

import argparse
import ast
import collections
import dataclasses
import functools
import io
import pathlib
import statistics
import sys
import tokenize
from collections.abc import Iterator

FOLDERS = ("qwen_jax", "experiments", "benchmarks", "launch")

# Allowed imports: a part of the package imports itself and the parts above it in this list.
LEVELS = [
    ("errors", "exit_codes"),
    ("ranges",),
    ("attention_config", "config", "sizes", "types", "compat"),
    ("utils",),
    ("tokenizer", "kernels", "parallel"),
    ("model", "data", "checkpoint"),
    ("inference", "sandbox"),
    ("train",),
    ("pretrained",),
    ("grading",),
    ("align", "agent"),
    ("evaluate",),
    ("serve",),
    ("corpus", "synthetic", "report"),
    ("plan",),
    ("cli",),
]
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
# Imports within a level that are allowed, with the reason.
SAME_LEVEL = {
    ("errors", "exit_codes"): "an error has an exit code",
    ("sizes", "config"): "a size is a ModelConfig",
    ("sizes", "attention_config"): "a size is a ModelConfig",
    ("config", "attention_config"): "a ModelConfig has the settings of attention",
}

# Size limits, and exceptions with the reason.
FILE_LINES, FUNCTION_LINES, FOLDER_FILES, CONFIG_FIELDS, MEDIAN_LINES = 450, 60, 15, 20, 150
_KERNEL = "the body of one kernel: its values are in registers and cannot be passed on"
_MEASURE = "one measurement, read from top to bottom"
LONG_FUNCTIONS = {
    "qwen_jax/kernels/hopper/backward_dq.py:_kernel": _KERNEL,
    "qwen_jax/kernels/tpu/backward.py:_chunk": _KERNEL,
    "benchmarks/aot/full_size.py:measure": _MEASURE,
    "benchmarks/peers/tunix_ppo.py:main": _MEASURE,
    "benchmarks/train/train_step.py:measure": _MEASURE,
}
FULL_FOLDERS = {
    "experiments": "an experiment or a command is a name that people type",
}
LARGE_CONFIGS: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Function:
    """A function and its length."""

    name: str  # path:name, qualified by enclosing classes and functions
    lines: int  # from def to the last line
    code: int  # lines of code: without docstrings, comments and blank lines


def files(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the Python files of the package, experiments, benchmarks and launchers."""
    return [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]


def room_of(path: pathlib.Path) -> str:
    """Returns the folder of a file, or the file's name if it is at the top of the package."""
    parts = path.parts
    if parts[0] == "qwen_jax":
        return "/".join(parts[:2]).removesuffix(".py")
    return "/".join(parts[:-1][:2])


def lines_of(path: pathlib.Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    """Returns the parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _code_lines(source: str) -> set[int]:
    """Returns the numbers of the lines with code, not only comments or blanks."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped and token.type != tokenize.ENDMARKER:
            found.update(range(token.start[0], token.end[0] + 1))
    return found


@functools.cache
def functions(root: pathlib.Path) -> tuple[Function, ...]:
    """Returns every function and method, including nested ones."""
    return tuple(_functions(root))


def _functions(root: pathlib.Path) -> Iterator[Function]:
    for path in files(root):
        source = path.read_text(encoding="utf-8")
        code = _code_lines(source)
        where = str(path.relative_to(root))

        def visit(node: ast.AST, prefix: str, code=code, where=where) -> Iterator[Function]:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    name = f"{prefix}{child.name}"
                    body = set(range(child.lineno, (child.end_lineno or child.lineno) + 1)) & code
                    first = child.body[0]
                    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                        body -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
                    total = (child.end_lineno or child.lineno) - child.lineno + 1
                    yield Function(f"{where}:{name}", total, len(body))
                    yield from visit(child, f"{name}.")
                elif isinstance(child, ast.ClassDef):
                    yield from visit(child, f"{prefix}{child.name}.")
                else:
                    yield from visit(child, prefix)

        yield from visit(tree_of(path), "")


@functools.cache
def imports(root: pathlib.Path) -> dict[pathlib.Path, set[pathlib.Path]]:
    """Returns file -> the project's files that it imports, anywhere in the file."""
    known = {path.relative_to(root) for path in files(root)}
    found = {}
    for path in sorted(known):
        names = set()
        for node in ast.walk(tree_of(root / path)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = path.parts[: len(path.parts) - node.level] if node.level else ()
                base = ".".join((*package, *filter(None, [node.module])))
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        candidates = {pathlib.Path(*name.split(".")).with_suffix(".py") for name in names}
        found[path] = (candidates & known) - {path}
    return found


def cycles(graph: dict) -> list[list[str]]:
    """Returns import cycles: strongly connected groups of more than one node."""
    index, low, stack, on_stack, found = {}, {}, [], set(), []

    def connect(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                connect(other)
                low[node] = min(low[node], low[other])
            elif other in on_stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while True:
                group.append(stack.pop())
                on_stack.discard(group[-1])
                if group[-1] == node:
                    break
            if len(group) > 1:
                found.append(sorted(map(str, group)))

    for node in sorted(graph):
        if node not in index:
            connect(node)
    return found


def between_rooms(graph: dict[pathlib.Path, set[pathlib.Path]]) -> dict[str, set[str]]:
    """Returns folder -> the folders that it imports."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for path, others in graph.items():
        found[room_of(path)] |= {room_of(other) for other in others} - {room_of(path)}
    return dict(found)


def order_violations(root: pathlib.Path) -> list[str]:
    """Returns imports of the package that violate LEVELS or leave the package."""
    found = []
    for path, others in imports(root).items():
        if path.parts[0] != "qwen_jax" or len(path.parts) == 2 and path.stem == "__init__":
            continue
        part = pathlib.Path(path.parts[1]).stem
        for other in sorted(others):
            target = pathlib.Path(other.parts[1]).stem if other.parts[0] == "qwen_jax" else None
            if target is None:
                found.append(f"{path} imports {other}: the package may not import from outside")
            elif (
                target != part
                and (part, target) not in SAME_LEVEL
                and LEVEL_OF[target] >= LEVEL_OF[part]
            ):
                found.append(f"{path} ({part}) imports {other} ({target})")
    return found


def size_violations(root: pathlib.Path) -> list[str]:
    """Returns files, functions, folders and configs over their limit, and unused exceptions."""
    lengths = {path: lines_of(path) for path in files(root) if lines_of(path)}
    found = [
        f"{path.relative_to(root)}: {lines} lines, the limit is {FILE_LINES}"
        for path, lines in lengths.items()
        if lines > FILE_LINES
    ]
    median = statistics.median(lengths.values())
    if median > MEDIAN_LINES:
        found.append(f"the median file has {median} lines, the limit is {MEDIAN_LINES}")
    folders = collections.Counter(str(path.parent.relative_to(root)) for path in lengths)
    for kind, limit, sizes, exceptions in (
        (
            "lines of code",
            FUNCTION_LINES,
            {function.name: function.code for function in functions(root)},
            LONG_FUNCTIONS,
        ),
        ("files", FOLDER_FILES, folders, FULL_FOLDERS),
        ("fields", CONFIG_FIELDS, dict(dataclass_fields(root)), LARGE_CONFIGS),
    ):
        large = {name: size for name, size in sizes.items() if size > limit}
        found += [
            f"{name}: {size} {kind}, the limit is {limit}"
            for name, size in large.items()
            if name not in exceptions
        ]
        found += [f"{name}: an unused exception" for name in exceptions.keys() - large.keys()]
    return found


def dataclass_fields(root: pathlib.Path) -> Iterator[tuple[str, int]]:
    """Yields (path:class, number of its fields) of every dataclass."""
    for path in files(root):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and any(
                "dataclass" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                fields = sum(isinstance(child, ast.AnnAssign) for child in node.body)
                yield f"{path.relative_to(root)}:{node.name}", fields


def describe(root: pathlib.Path) -> Iterator[str]:
    """Yields the lines of the report."""
    rooms: dict[str, list[int]] = collections.defaultdict(list)
    for path in files(root):
        if lines := lines_of(path):
            rooms[room_of(path.relative_to(root))].append(lines)
    graph = imports(root)
    arrows = between_rooms(graph)
    yield f"{'folder':28} {'files':>5} {'lines':>6} {'longest':>7}  imports"
    for room, lengths in sorted(rooms.items()):
        others = " ".join(sorted(name.removeprefix("qwen_jax/") for name in arrows.get(room, ())))
        yield f"{room:28} {len(lengths):5} {sum(lengths):6} {max(lengths):7}  {others}"
    lengths = sorted((length for found in rooms.values() for length in found), reverse=True)
    every = sorted(functions(root), key=lambda function: -function.code)
    yield ""
    yield (
        f"{len(lengths)} files with {sum(lengths)} lines; median {statistics.median(lengths):.0f}, "
        f"longest {lengths[0]}; {sum(map(len, graph.values()))} imports between files, "
        f"{sum(map(len, arrows.values()))} between folders"
    )
    yield f"import cycles of files: {cycles(graph) or 'none'}"
    yield f"import cycles of folders: {cycles(arrows) or 'none'}"
    yield "longest files:"
    longest = sorted(files(root), key=lines_of, reverse=True)[:10]
    yield from (f"  {lines_of(path):4} {path.relative_to(root)}" for path in longest)
    yield "longest functions (lines of code, all lines):"
    yield from (f"  {f.code:4} {f.lines:4} {f.name}" for f in every[:15])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).parents[2])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    top = options.root.resolve()
    if options.check:
        broken = order_violations(top) + size_violations(top)
        sys.exit("\n".join(broken) or 0)
    print("\n".join(describe(top)))


if __name__ == "__main__":
    main()
