"""Unknown compiler options: ours are dropped with a warning, those of the user raise."""

import jax
import jax.numpy as jnp
import pytest
from absl import logging

from qwen_jax.parallel import xla_options


@pytest.fixture
def lowered():
    return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((4,), jnp.float32))


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: found.append(text % values))
    return found


def test_compiler_options_are_known_here(lowered, warnings):
    assert xla_options.compile_for("cpu", lowered)(jnp.zeros(4))[0] == 1
    assert not warnings


def test_compile_for_drops_an_unknown_option_with_a_warning(lowered, warnings, monkeypatch):
    ours = xla_options.compiler_options("cpu")
    monkeypatch.setattr(
        xla_options,
        "compiler_options",
        lambda platform: {"xla_of_next_year": "true", "xla_of_last_year": 1} | ours,
    )
    assert xla_options.compile_for("cpu", lowered)(jnp.zeros(4))[0] == 1
    assert len(warnings) == 2
    assert "xla_of_next_year=true" in " ".join(warnings) and "xla_of_last_year=1" in " ".join(
        warnings
    )


def test_compile_for_raises_on_an_unknown_user_option(lowered):
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_misspelled"):
        xla_options.compile_for("cpu", lowered, {"xla_misspelled": "true"})


def test_compile_for_raises_on_a_bad_value(lowered):
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_prefer_vector_width"):
        xla_options.compile_for("cpu", lowered, {"xla_cpu_prefer_vector_width": "wide"})
