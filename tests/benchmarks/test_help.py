"""Every benchmark that does not use qwen_jax.cli.flags explains itself too."""

import subprocess
import sys

import pytest

from tests.helpers.tiny_checkpoint import ROOT


@pytest.mark.parametrize(
    "name", ["train.matmul_floor", "resilience.cached", "resilience.failing_files"]
)
def test_help_of_a_benchmark(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout) > 200 and done.stderr == ""
