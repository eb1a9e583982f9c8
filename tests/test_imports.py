"""Who may import whom (WORKSPACE.md), read from the source."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEVELS = {  # a module may import its own part and lower levels; parts of level 2 not one another
    "errors": 0,
    "utils": 1,
    "faults": 1,
    "leaves": 1,
    "manifest": 1,
    "step_folders": 1,
    "config": 1,
    "sizes": 1,
    "types": 1,
    "tokenizer": 2,
    "kernels": 2,
    "parallel": 2,
    "model": 3,
    "data": 3,
    "checkpoint": 3,
    "generate": 4,
    "export": 4,
    "train": 5,
    "serve": 5,
    "align": 6,
    "agent": 6,
    "evaluate": 6,
    "report": 6,
    "plan": 7,
}


def imported_names(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations() -> list[str]:
    found = []
    for path in sorted((ROOT / "qwen_jax").rglob("*.py")):
        part = path.relative_to(ROOT / "qwen_jax").with_suffix("").parts[0]
        if part == "__init__":
            continue
        for name in imported_names(path):
            if name.split(".")[0] == "experiments":
                found.append(f"{path.name} imports experiments")
            if not name.startswith("qwen_jax."):
                continue
            other = name.split(".")[1]
            allowed = (
                LEVELS[other] < LEVELS[part]
                or other == part
                or (LEVELS[other] == LEVELS[part] == 1)
            )
            if not allowed:
                found.append(f"{path.relative_to(ROOT)} ({part}) imports {other}")
    return found


def test_the_import_rule_holds():
    assert violations() == []


def test_training_needs_the_core_dependencies_alone():
    code = """
import sys
import experiments.pretrain
optional = {"pyarrow", "tokenizers", "trafilatura", "matplotlib", "transformers", "torch", "daft",
            "starlette", "uvicorn"}
print(sorted(optional & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
