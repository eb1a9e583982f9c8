"""Who may import whom (WORKSPACE.md), read from the source."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A part imports itself and the levels above it in this list.
LEVELS = [
    ("errors", "exit_codes"),
    ("config", "sizes", "types", "compat"),
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
# Parts of one level that may import each other, with the reason.
SAME_LEVEL = {
    ("sizes", "config"): "a size is a ModelConfig",
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
            if name.split(".")[0] in ("experiments", "benchmarks", "launch", "tests"):
                found.append(f"{path.name} imports {name}")
            if not name.startswith("qwen_jax."):
                continue
            other = name.split(".")[1]
            if other == part or (part, other) in SAME_LEVEL:
                continue
            if LEVEL_OF[other] >= LEVEL_OF[part]:
                found.append(f"{path.relative_to(ROOT)} ({part}) imports {other}")
    return found


def test_the_import_rule_holds():
    assert violations() == []


def test_training_needs_only_the_core_dependencies():
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
