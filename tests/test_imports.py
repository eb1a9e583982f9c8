"""Imports load no optional dependency."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_pretrain_imports_only_core_dependencies():
    code = """
import sys
import experiments.pretrain, qwen_jax
qwen_jax.load_tokenizer
optional = {"pyarrow", "tokenizers", "trafilatura", "matplotlib", "transformers", "torch", "daft",
            "starlette", "uvicorn", "jinja2", "llguidance"}
print(sorted(optional & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
