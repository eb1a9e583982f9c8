"""The tool `docs`: searches the documentation of this computer's Python and its packages.

The text is what pydoc shows: docstrings and signatures. They are read from the source without
importing it; modules of the standard library that are written in C are imported for theirs.
"""

import ast
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import sysconfig
import threading
import types
import warnings
from collections.abc import Iterator, Sequence

from qwen_jax.agent.tool import Limits, Result, Tool
from qwen_jax.agent.tools.bm25 import Index
from qwen_jax.errors import ConfigError

_SHOWN = 1500  # characters of one result
_MAX_SOURCE = 1 << 20  # bytes of a file; larger ones are tables
_SKIPPED = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo", "this", "antigravity"})


class Docs:
    """The documentation of some packages, which is read and indexed on the first search.

    Args:
      packages: names of packages, and "stdlib" for the standard library.

    Raises:
      ConfigError: a package is not installed.
    """

    def __init__(self, packages: Sequence[str] = ("stdlib",)):
        self._roots: list[tuple[str, pathlib.Path | None]] = []
        for name in packages:
            self._roots += _standard() if name == "stdlib" else [(name, _path_of(name))]
        self._index: Index | None = None
        self._lock = threading.Lock()

    def search(self, query: str, count: int = 3) -> list[tuple[str, str]]:
        """Returns (name, documentation) of the best entries, best first."""
        with self._lock:
            if self._index is None:
                self._index = Index([entry for root in self._roots for entry in _entries(*root)])
        return self._index.search(query, count)

    def tool(self) -> Tool:
        """Returns the tool."""

        def run(arguments: dict, limits: Limits) -> Result:
            found = self.search(arguments["query"], arguments.get("count", 3))
            if not found:
                return Result("nothing is documented with any of these words")
            return Result(
                "\n\n".join(
                    f"{name}\n{text[:_SHOWN]}{' [...]' if len(text) > _SHOWN else ''}"
                    for name, text in found
                )
            )

        return Tool(
            "docs",
            "Searches the documentation of the Python packages of this computer, by words such as "
            "the name of a function or what it does, in English.",
            run,
            {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "minLength": 1, "maxLength": 300},
                    "count": {"type": "integer", "minimum": 1, "maximum": 10},
                },
                "required": ["query"],
                "additionalProperties": False,
            },
            "按英文关键词(函数名或其功能)搜索本机 Python 包的文档。",
        )


def _standard() -> list[tuple[str, pathlib.Path | None]]:
    """Returns the modules of the standard library; None: it has no source."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    found = []
    for name in sorted(sys.stdlib_module_names - _SKIPPED):
        if name.startswith("_"):
            continue
        paths = (folder / f"{name}.py", folder / name)
        found.append((name, next((path for path in paths if path.exists()), None)))
    return found


def _path_of(name: str) -> pathlib.Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"there is no package {name!r} here.", "docs", "install it, or name another one."
        )
    path = pathlib.Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path


def _entries(name: str, path: pathlib.Path | None) -> Iterator[tuple[str, str]]:
    """Yields (name, documentation) of a module, its functions, classes and methods."""
    if path is None or path.suffix not in ("", ".py"):
        yield from _imported(name)
    elif path.suffix == ".py":
        yield from _parsed(name, path)
    else:
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(
                each for each in folders if each not in _SKIPPED and not each.startswith(("_", "."))
            )
            relative = pathlib.Path(folder).relative_to(path).parts
            for each in sorted(files):
                stem, ext = os.path.splitext(each)
                if ext == ".py" and (stem == "__init__" or not stem.startswith(("_", "test_"))):
                    parts = (name, *relative, *(() if stem == "__init__" else (stem,)))
                    yield from _parsed(".".join(parts), pathlib.Path(folder) / each)


def _parsed(module: str, path: pathlib.Path) -> Iterator[tuple[str, str]]:
    try:
        source = path.read_bytes()
        if len(source) > _MAX_SOURCE:
            return
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # some packages have templates and sources of other versions
    if text := ast.get_docstring(tree):
        yield module, text
    yield from _definitions(tree.body, module)


def _definitions(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name, text = f"{prefix}.{node.name}", ast.get_docstring(node)
        if node.name.startswith("_"):
            continue
        if text:
            signature = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            yield f"{name}{signature}", text
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, name)


def _imported(name: str) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings(action="ignore"):
            module = importlib.import_module(name)
    except Exception:  # not of this platform
        return
    if module.__doc__:
        yield name, module.__doc__
    yield from _members(name, module)


def _members(prefix: str, owner: object) -> Iterator[tuple[str, str]]:
    """Yields what is documented of a module or a class: also methods, such as list.sort."""
    for each in sorted(vars(owner)):
        value = getattr(owner, each)
        if each.startswith("_") or not callable(value) or not isinstance(value.__doc__, str):
            continue
        try:
            signature = str(inspect.signature(value))
        except (TypeError, ValueError):
            signature = ""
        yield f"{prefix}.{each}{signature}", value.__doc__
        if isinstance(value, type) and not issubclass(value, BaseException):
            if isinstance(owner, types.ModuleType):
                yield from _members(f"{prefix}.{each}", value)
