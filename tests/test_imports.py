"""What an import costs: no optional dependency, no work, no second."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


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
