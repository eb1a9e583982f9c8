"""The command of the lm-eval adapter: our errors have no traceback before them."""

import importlib.util
import subprocess
import sys

import pytest

from qwen_jax import exit_codes

COMMAND = [sys.executable, "-m", "qwen_jax.evaluate.lm_eval_adapter"]


def refused(*arguments):
    found = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert found.returncode == exit_codes.REFUSED, found.stderr
    assert "Traceback" not in found.stderr
    return found.stderr


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_command_names_what_is_missing_without_a_traceback():
    error = refused()
    assert "lm-eval is not installed" in error and "qwen_jax[lm-eval]" in error


def test_command_prints_errors_of_the_model_without_a_traceback(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    error = refused(
        *("run", "--model", "qwen_jax", "--tasks", "arc_easy"),
        *("--model_args", f"checkpoint={tmp_path / 'none'}"),
    )
    assert "what:  the folder of the model does not exist." in error
