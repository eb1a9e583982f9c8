"""A corpus that needs no download: the documentation and source code of the running Python.

pydoc renders the documentation to HTML, which is extracted like a web page. The source code is
that of the standard library. Paths and object addresses of this machine are removed, so the same
Python version gives the same text. The pages and source of a package form one group: either all of
them are held out or none.
"""

import concurrent.futures
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator

from qwen_jax.corpus.sources import extract
from qwen_jax.data.document import Document
from qwen_jax.errors import DataError

# Excluded modules: they are not reference documentation, have side effects when imported (a
# browser, a window, a poem), are often missing and a quarter of all text (Tk), or contain tables
# (encodings).
_LEFT_OUT = {
    "antigravity",
    "this",
    "idlelib",
    "turtledemo",
    "turtle",
    "tkinter",
    "encodings",
    "test",
    "tests",
    "lib2to3",
    "__main__",
    "__phello__",
    "__hello__",
    "site-packages",
    "_sysconfigdata",
    "config",
}
_CHUNK = 12  # modules per subprocess
_SECONDS = 30  # time limit of a subprocess


def modules() -> list[str]:
    """Returns the names of all modules and submodules of the standard library, sorted."""
    found = set()
    for name in sys.stdlib_module_names:
        if _wanted(name):
            found.add(name)
            folder = _stdlib() / name
            if (folder / "__init__.py").exists():
                found |= {
                    info.name
                    for info in pkgutil.walk_packages(
                        [str(folder)], prefix=f"{name}.", onerror=lambda _: None
                    )
                }
    return sorted(name for name in found if all(map(_wanted, name.split("."))))


def documentation(
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Document], dict[str, str]]:
    """Returns the pydoc page of every standard module as text.

    Args:
      progress: receives the numbers of finished modules and of all modules.

    Returns:
      (documents sorted by name, {module: the reason it has no page}). For example, modules for
      other operating systems cannot be imported.

    Raises:
      DataError: no module could be rendered.
    """
    names = modules()
    chunks = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
    pages, failures, done = {}, {}, 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for records in pool.map(_render, chunks):
            for record in records:
                if "html" in record:
                    pages[record["module"]] = _portable(extract.page(record["html"]))
                else:
                    failures[record["module"]] = record["error"]
            done += len(records)
            progress(done, len(names))
    if not pages:
        raise DataError(
            "pydoc could not render any module.",
            sys.executable,
            f"fix the first error: {next(iter(failures.items()), 'no modules found')}",
        )
    return [
        Document(f"pydoc:{name}", pages[name], name.split(".")[0]) for name in sorted(pages)
    ], failures


def source_code() -> Iterator[Document]:
    """Yields the Python files of the standard library without its tests, sorted by name."""
    root = _stdlib()
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if all(map(_wanted, relative.with_suffix("").parts)):
            try:
                yield Document(
                    f"stdlib:{relative}",
                    file.read_text(encoding="utf-8"),
                    relative.with_suffix("").parts[0],
                )
            except UnicodeDecodeError:  # a test file that is deliberately not UTF-8
                continue


def _stdlib() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_paths()["stdlib"])


def _wanted(part: str) -> bool:
    return not any(
        part == name or part.startswith((f"{name}-", f"{name}_")) for name in _LEFT_OUT
    ) and not part.endswith("_test")


def _render(names: list[str]) -> list[dict]:
    """Returns the records of pydoc_pages for `names`; a crash or hang loses only that module."""
    # Isolated mode and a minimal environment: pydoc prints the values of variables, which must not
    # contain secrets or paths of this machine.
    command = [sys.executable, "-I", "-S", str(_PAGES)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", "COLUMNS": "80"}
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            env=environment,
            timeout=_SECONDS,
            cwd="/",
            input="\n".join(names).encode(),
        )
        lines, problem = run.stdout.splitlines(), f"exit code {run.returncode}"
    except subprocess.TimeoutExpired as error:
        lines, problem = (error.stdout or b"").splitlines(), f"took over {_SECONDS} s"
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:  # truncated by a timeout
            break
    rest = names[len(records) :]
    if rest:
        records.append({"module": rest[0], "error": problem})
        records += _render(rest[1:]) if rest[1:] else []
    return records


def _portable(text: str) -> str:
    """Removes links, local paths, object addresses and documentation of inherited members."""
    lines = [re.sub(r"(?<=\S)  index$", "", line) for line in text.splitlines()[:1]]
    lines += [
        line
        for line in text.splitlines()[1:]
        if line != "Module Reference" and not line.startswith(_PREFIXES)
    ]
    text = "\n".join(_own_lines(lines)) + "\n"
    for prefix in _PREFIXES:
        text = text.replace(prefix, "/usr")
    return re.sub(r"\b(at 0x|handle )[0-9a-f]{6,}", r"\1...", text)


def _own_lines(lines: list[str]) -> Iterator[str]:
    """Drops inherited members; the page of the base class documents them."""
    inherited = False
    for line in lines:
        if re.match(r"[A-Z][a-z ]+ inherited from \S+:$", line):
            inherited = True
        elif line.endswith(" defined here:") or re.match(r"class \w|[A-Z][a-z]+$", line):
            inherited = False
        if not inherited:
            yield line


_PAGES = pathlib.Path(__file__).with_name("pydoc_pages.py")
_PREFIXES = tuple(
    sorted(
        {sys.prefix, sys.base_prefix, str(_stdlib()), os.path.expanduser("~"), str(_PAGES.parent)}
        - {"/", "/usr"},
        key=len,
        reverse=True,
    )
)
