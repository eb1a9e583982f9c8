"""Builds the site in build/site: the Markdown of this repository and the API reference.

    make docs

Pages are staged in build/docs under the paths that they have in the repository, so the same links
work on the site and on GitHub. A link to a Python file becomes a link to its API page. After the
build, the public names of qwen_jax are looked up in the API pages, and every page is searched for
resources that a browser would fetch from another host.
"""

import ast
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "WORKSPACE.md",
    "CHANGELOG.md",
    "docs/**/*.md",
    "launch/README.md",
    "benchmarks/results/*.md",
]
# An index page would become the title page of its section of the menu.
RENAMED = {
    "launch/README.md": "launch/launchers.md",
    "benchmarks/results/README.md": "benchmarks/results/measurements.md",
}
ASSETS = {".png", ".json", ".svg"}  # copied to the site where a page links to one
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
# Attributes that make a browser fetch something when the page opens; `a href` does not.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']?((?:https?:)?//[^\"' >]+)"
    r"|<link\b[^>]*?\bhref=[\"']?((?:https?:)?//[^\"' >]+)"
)


def main() -> None:
    """Stages the pages, runs MkDocs and checks its output. Exits with 1 where anything is wrong."""
    build = ROOT / "build"
    stage(ROOT, build / "docs")
    config = write_config(ROOT, build)
    # Not --quiet: it raises the log level, and --strict counts only warnings that are logged.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, encoding="utf-8"
    )
    sys.stderr.writelines(
        line for line in done.stderr.splitlines(True) if not line.startswith("INFO")
    )
    if done.returncode:
        sys.exit("docs: mkdocs --strict failed. The warnings above name the pages to fix.")
    names = list(public_names(ROOT))
    problems = missing_names(names, build / "site") + foreign_resources(build / "site")
    if problems:
        sys.exit("docs: " + "\n      ".join(problems))
    pages = len(list((build / "site").rglob("*.html")))
    print(
        f"build/site: {pages} pages with {len(names):,} public names. Open build/site/index.html; "
        "for its search, run python -m http.server -d build/site."
    )


def modules(root: pathlib.Path) -> list[pathlib.Path]:
    """The public modules of the package: no part of their path starts with an underscore."""
    return [
        path.relative_to(root)
        for path in sorted((root / "qwen_jax").rglob("*.py"))
        if not any(part.startswith("_") for part in path.relative_to(root).with_suffix("").parts)
        or path.name == "__init__.py"
    ]


def dotted(module: pathlib.Path) -> str:
    """qwen_jax/model/spec.py -> qwen_jax.model.spec; of an __init__.py, the name of the package."""
    return ".".join(module.with_suffix("").parts).removesuffix(".__init__")


def public_names(root: pathlib.Path) -> Iterator[str]:
    """The dotted names of all public modules, functions, classes, methods, fields and constants."""
    for module in modules(root):
        yield dotted(module)
        tree = ast.parse((root / module).read_text(encoding="utf-8"))
        yield from _defined(tree.body, dotted(module))


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        for name in found:
            if not name.startswith("_"):
                yield f"{prefix}.{name}"
                if isinstance(node, ast.ClassDef):
                    yield from _defined(node.body, f"{prefix}.{name}")


def api_page(path: pathlib.Path) -> pathlib.PurePosixPath | None:
    """The staged page of a Python file or of a folder of them; None where it has none."""
    if path.parts[:1] not in (("qwen_jax",), ("experiments",)):
        return None
    if path.suffix == ".py" and path.name != "__init__.py":
        return pathlib.PurePosixPath("api", path.with_suffix(".md"))
    folder = path.parent if path.suffix == ".py" else path
    return pathlib.PurePosixPath("api", folder, "index.md")


def stage(root: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the pages to `target` and writes the API pages, with links that work there."""
    shutil.rmtree(target, ignore_errors=True)
    for page in pages(root):
        text = staged_text((root / page).read_text(encoding="utf-8"), page, root)
        _write(target / RENAMED.get(page.as_posix(), page), text)
    for asset in linked_assets(root):
        (target / asset).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / asset, target / asset)
    shutil.copy(root / "docs/site.css", target / "docs/site.css")
    for module in modules(root):
        _write(target / _page(module), _api_text(root, module))
    for page in sorted((root / "experiments").glob("*.py")):
        _write(target / _page(page.relative_to(root)), _experiment_text(root, page))


@functools.cache
def pages(root: pathlib.Path) -> list[pathlib.Path]:
    """The Markdown files of the repository that are on the site, relative to `root`."""
    return sorted({path.relative_to(root) for pattern in PAGES for path in root.glob(pattern)})


def linked_assets(root: pathlib.Path) -> set[pathlib.Path]:
    """The pictures and data files that the pages link to, relative to `root`."""
    found = set()
    for page in pages(root):
        for _, _, link in LINK.findall((root / page).read_text(encoding="utf-8")):
            path = pathlib.Path(os.path.normpath(page.parent / link))
            if path.suffix in ASSETS and (root / path).is_file():
                found.add(path)
    return found


def staged_text(text: str, page: pathlib.Path, root: pathlib.Path) -> str:
    """A page with its links to code turned into links to API pages.

    A link to a file that is not on the site (a test, a benchmark) becomes its text. Links that lead
    nowhere are left as they are: MkDocs reports them.
    """

    def replace(match: re.Match) -> str:
        picture, label, link = match.groups()
        file, _, anchor = link.partition("#")
        path = pathlib.Path(os.path.normpath(page.parent / file))
        if not file or "://" in file or path.suffix in ASSETS or not (root / path).exists():
            return match[0]
        if (root / path / "README.md").exists():
            path /= "README.md"
        is_page = path in pages(root)
        target = RENAMED.get(path.as_posix(), path) if is_page else api_page(path)
        if target is None:
            return label
        link = pathlib.PurePath(os.path.relpath(target, page.parent)).as_posix()
        return f"{picture}[{label}]({link}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in parts)


def write_config(root: pathlib.Path, build: pathlib.Path) -> pathlib.Path:
    """Writes build/mkdocs.yml: mkdocs.yml with results and the API reference in its menu."""
    import yaml

    config = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))
    experiments = [
        path.relative_to(root)
        for path in sorted((root / "experiments").glob("*.py"))
        if path.name != "__init__.py"
    ]
    config |= {"docs_dir": "docs", "site_dir": "site"}
    results = [
        pathlib.PurePosixPath(RENAMED.get(page.as_posix(), page.as_posix()))
        for page in pages(root)
        if page.parts[0] == "benchmarks"
    ]
    titles = [{page.stem.replace("_", " "): str(page)} for page in sorted(results)]
    config["nav"] += [
        {"Results": ["docs/results.md", *titles]},
        {"API": _menu(modules(root), pathlib.Path("qwen_jax"))},
        {
            "Experiments": ["api/experiments/index.md"]
            + [{path.stem: str(_page(path))} for path in experiments]
        },
    ]
    path = build / "mkdocs.yml"
    _write(path, yaml.safe_dump(config, sort_keys=False))
    return path


def missing_names(names: list[str], site: pathlib.Path) -> list[str]:
    """A line for each public name that has no anchor on an API page."""
    anchors: set[str] = set()
    for page in (site / "api").rglob("*.html"):
        anchors.update(re.findall(r'\bid="(qwen_jax[\w.]*)"', page.read_text(encoding="utf-8")))
    return [f"{name} is on no page of the API reference." for name in names if name not in anchors]


def foreign_resources(site: pathlib.Path) -> list[str]:
    """A line for each script, style, picture or font that a page would fetch from another host."""
    found = []
    for page in sorted(site.rglob("*.html")):
        for match in FETCHED.finditer(page.read_text(encoding="utf-8")):
            found.append(f"{page.relative_to(site)} fetches {match[1] or match[2]}.")
    return found


def _page(module: pathlib.Path) -> pathlib.PurePosixPath:
    page = api_page(module)
    assert page is not None
    return page


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _docstring(path: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _api_text(root: pathlib.Path, module: pathlib.Path) -> str:
    """The page of a module; that of a package also lists its modules with their first lines."""
    name = dotted(module)
    text = f"---\ntitle: {name}\n---\n\n::: {name}\n"
    if module == pathlib.Path("qwen_jax/__init__.py"):
        text += _exports(root)
    if module.name != "__init__.py":
        source = (root / module).read_text(encoding="utf-8")
        fence = f'`````python title="{module.as_posix()}"\n{source}`````\n'
        return f"{text}\n## Source {{ data-search-exclude }}\n\n{fence}"
    rows = []
    for other in modules(root):
        inside = other.parent == module.parent and other != module
        if inside or (other.name == "__init__.py" and other.parent.parent == module.parent):
            link = os.path.relpath(_page(other), _page(module).parent)
            first = _docstring(root / other).partition("\n")[0].replace("|", "\\|")
            rows.append((other.name == "__init__.py", f"[{dotted(other)}]({link})", first))
    lines = [f"| {link} | {_escaped(first)} |" for _, link, first in sorted(rows)]
    return text + "\n## Modules\n\n| module | |\n|---|---|\n" + "\n".join(lines) + "\n"


def _exports(root: pathlib.Path) -> str:
    """The names that `import qwen_jax` offers, with links to where they are documented."""
    text = (root / "qwen_jax/__init__.py").read_text(encoding="utf-8")
    lines = ["\n## Names of the package\n"]
    for home, name in re.findall(r"^ +from qwen_jax([\w.]*) import (\w+) as", text, re.MULTILINE):
        lines.append(f"- [`qwen_jax.{name}`][qwen_jax{home}.{name}]")
    return "\n".join(lines) + "\n"


def _experiment_text(root: pathlib.Path, path: pathlib.Path) -> str:
    """The page of an experiment: its docstring, as --help prints it."""
    if path.name == "__init__.py":
        rows = [
            f"| [{other.stem}]({other.stem}.md) | {_docstring(other).partition(chr(10))[0]} |"
            for other in sorted((root / "experiments").glob("*.py"))
            if other.name != "__init__.py"
        ]
        return (
            "# Experiments\n\nThe commands people type: `python -m experiments.NAME`. `--help` "
            "lists the flags.\n\n| command | |\n|---|---|\n" + "\n".join(rows) + "\n"
        )
    import griffe_docstrings  # in this folder; needs griffe

    return (
        f"# `experiments.{path.stem}`\n\n"
        f"{griffe_docstrings.command_docstring(_docstring(path))}\n\n"
        f"`python -m experiments.{path.stem} --help` lists every flag with its value.\n"
    )


def _escaped(text: str) -> str:
    return re.sub(r"([\[\]*<])", r"\\\1", text)


def _menu(found: list[pathlib.Path], folder: pathlib.Path) -> list:
    """The entries of a package in the menu: its page, its modules, its packages."""
    menu: list = [str(_page(folder / "__init__.py"))]
    for path in found:
        if path.parent == folder and path.name != "__init__.py":
            menu.append({path.stem: str(_page(path))})
    for path in found:
        if path.name == "__init__.py" and path.parent.parent == folder:
            menu.append({path.parent.name: _menu(found, path.parent)})
    return menu


if __name__ == "__main__":
    main()
