"""--help of every page works with only the core dependencies."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Runs in a separate process in which no optional dependency can be imported.
CODE = """
import contextlib, io, pathlib, runpy, sys

OPTIONAL = {
    "daft", "jinja2", "libtpu", "lxml", "lxml_html_clean", "matplotlib", "py3langid", "pyarrow",
    "ray", "resiliparse", "starlette", "tokenizers", "torch", "trafilatura", "transformers",
    "uvicorn", "wandb",
}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
sys.path.insert(0, ".")
pages = [
    path.stem
    for path in sorted(pathlib.Path("experiments").glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]
for page in pages:
    sys.argv = [page, "--help"]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            runpy.run_module(f"experiments.{page}", run_name="__main__")
    except SystemExit as end:
        print(page, end.code, "--" in shown.getvalue())
"""


def test_help_needs_no_optional_dependency():
    run = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert len(lines) > 15
    assert [line for line in lines if not line.endswith(" 0 True")] == []


def test_schema_names_the_missing_extra():
    code = """
import sys
sys.modules["pyarrow"] = None
from qwen_jax.corpus.stage import schema
from qwen_jax.errors import DataError
try:
    schema()
except DataError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'qwen_jax[data]'" in run.stdout
