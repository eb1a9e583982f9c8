"""Rule-based rewards, and loading them by name."""

import sys
import types

import pytest

from qwen_jax.align import rewards
from qwen_jax.errors import ConfigError


def test_arithmetic_compares_the_last_number_with_the_last_sum():
    prompts = ["What is 2 + 3?", "1+1, then 4*5", "7 - 9"]
    assert rewards.arithmetic(prompts, ["It is 5.", "20", "2"]) == [1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="no expression a \\+ b"):
        rewards.arithmetic(["Hello"], ["5"])


def test_load_function_knows_the_former_name_of_the_module(capsys):
    found = rewards.load_function("experiments.rewards:arithmetic")
    assert found is rewards.arithmetic
    (warning,) = capsys.readouterr().err.splitlines()
    assert "experiments.rewards" in warning and "qwen_jax.align.rewards" in warning
    assert rewards.load_function("qwen_jax.align.rewards:arithmetic") is rewards.arithmetic
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["qwen_jax.align.rewards:arithmetik", "no.such.module:f"])
def test_load_function_rejects_unknown_names(name):
    with pytest.raises(ConfigError, match="arithmetic|no.such|No module"):
        rewards.load_function(name)


def test_load_function_prefers_a_user_module_to_a_former_name(monkeypatch, capsys):
    theirs = types.ModuleType("experiments.rewards")
    theirs.arithmetic = lambda prompts, completions: [7.0]
    monkeypatch.setitem(sys.modules, "experiments.rewards", theirs)
    assert rewards.load_function("experiments.rewards:arithmetic") is theirs.arithmetic
    assert capsys.readouterr().err == ""
