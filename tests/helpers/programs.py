"""The programs of this repository that read their flags with qwen_jax.cli.flags."""

import ast
import importlib
import pathlib
from typing import Any

from tests.helpers.tiny_checkpoint import ROOT

PROGRAMS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("experiments", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "flags.run(main" in path.read_text(encoding="utf-8")
]


def recipes_of(program: str) -> dict[str, Any]:
    """The recipes that a program gives to flags.run, without running it."""
    module = importlib.import_module(program)
    tree = ast.parse(pathlib.Path(str(module.__file__)).read_text(encoding="utf-8"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "flags.run"
    ]
    return eval(ast.unparse(call.args[2]), vars(module))
